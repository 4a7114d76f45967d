"""Prepared data to masked batches. A batch is a pure function of the seed and the step."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from deberta_jax.data.config import DataConfig, MaskingConfig
from deberta_jax.data.dataset import PreparedData
from deberta_jax.data.masking import derive_seed, mask_batch, num_predictions
from deberta_jax.data.packed_text import TRAIN, VALIDATION
from deberta_jax.errors import UserError
from deberta_jax.parallel.processes import available_cores

Batch = dict[str, np.ndarray]

# Grain's ranges end somewhere; no run gets this far.
FOREVER = 1 << 48


def train_batches(
    prepared: PreparedData,
    config: DataConfig,
    masking: MaskingConfig | None,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: Sequence[range] = (),
) -> Iterator[Batch]:
    """Yields this process's rows of the global batches from `start_step` on, without end.

    Global batch k is records [k B, (k + 1) B) of a stream that repeats the train split, shuffled
    anew in every epoch. A batch depends on (`seed`, k) alone, so a step is the whole position of
    the stream, and to start at one costs nothing. `rows` are those of each batch that this process
    reads, one block after another; all of them unless given.

    Yields:
        input_ids: int32 [B, L], targets hidden; segment_ids: int32 [B, L], 0 for padding;
        position_ids: int32 [B, L], from 0 in every segment; masked_positions, masked_labels: int32
        [B, P]; masked_weights: float32 [B, P]. See `mask_batch`. B is the number of `rows`.
        Without `masking`, input_ids are the text as it is, and there is nothing masked.

    Raises:
        UserError: a masking field is out of range.
    """
    own = _Rows(prepared, TRAIN, masking, batch_size, tuple(rows), seed)
    order = grain.MapDataset.range(len(own.source))
    order = order.shuffle(seed=derive_seed(seed, "shuffle") % 2**32).repeat()

    def batch_at(step: int) -> Batch:
        return own.batch(step, lambda row: int(order[step * batch_size + row]))

    steps = grain.MapDataset.range(start_step, FOREVER).map(batch_at)
    return iter(prefetched(steps, config.prefetch))


def validation_batches(
    prepared: PreparedData,
    config: DataConfig,
    masking: MaskingConfig | None,
    *,
    batch_size: int,
    seed: int,
    num_batches: int = 0,
    rows: Sequence[range] = (),
) -> Iterator[Batch]:
    """Yields this process's rows of the validation split: same order, same targets every time.

    The batches are those of `train_batches` in form. The last is filled up with rows of padding,
    whose weights are 0. At most `num_batches` are made, 0: all.

    Raises:
        UserError: as `train_batches`.
    """
    own = _Rows(prepared, VALIDATION, masking, batch_size, tuple(rows), seed)
    total = len(own.source)
    available = -(-total // batch_size)

    def batch_at(index: int) -> Batch:
        first = index * batch_size
        return own.batch(index, lambda row: first + row if first + row < total else None)

    indices = grain.MapDataset.range(min(num_batches or available, available))
    return iter(prefetched(indices.map(batch_at), config.prefetch))


def batch_shapes(
    masking: MaskingConfig, sequence_length: int, batch_size: int
) -> dict[str, tuple[tuple[int, int], type]]:
    """(shape, type) of every array of a global batch of `train_batches`, without any data."""
    tokens = (batch_size, sequence_length)
    masked = (batch_size, num_predictions(masking, sequence_length))
    shapes = dict.fromkeys(("input_ids", "segment_ids", "position_ids"), (tokens, np.int32))
    shapes |= dict.fromkeys(("masked_positions", "masked_labels"), (masked, np.int32))
    return shapes | {"masked_weights": (masked, np.float32)}


def steps_per_epoch(prepared: PreparedData, batch_size: int) -> float:
    """Steps that one pass over the train split takes."""
    return prepared.metadata.splits[TRAIN].sequences / batch_size


def tokens_per_step(prepared: PreparedData, batch_size: int) -> float:
    """Mean number of tokens in a global train batch, [CLS] and [SEP] included, padding not."""
    train = prepared.metadata.splits[TRAIN]
    return batch_size * train.positions / train.sequences


def position_ids(segment_ids_BL: np.ndarray) -> np.ndarray:
    """int32 [B, L]: each token's place in its segment, from 0; 0 for padding (segment 0)."""
    place_L = np.arange(segment_ids_BL.shape[1], dtype=np.int32)
    start_BL = np.zeros(segment_ids_BL.shape, np.int32)
    changes_BL = segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
    start_BL[:, 1:] = np.where(changes_BL, place_L[1:], 0)
    start_BL = np.maximum.accumulate(start_BL, axis=1)
    return np.where(segment_ids_BL > 0, place_L - start_BL, 0)


@dataclasses.dataclass
class _Rows:
    """The rows of every global batch of a split that one process reads."""

    prepared: PreparedData
    split: str
    masking: MaskingConfig | None
    batch_size: int
    blocks: tuple[range, ...]
    seed: int

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: it has to be at least 1")
        if self.masking:
            num_predictions(self.masking, self.prepared.metadata.sequence_length)
        self.blocks = self.blocks or (range(self.batch_size),)
        self.source = self.prepared.source(self.split)
        self.mask_seed = derive_seed(self.seed, f"{self.split} masks")

    def batch(self, step: int, record_of: Callable[[int], int | None]) -> Batch:
        """The rows of global batch `step`; a row of no record is padding."""
        blocks = [self._block(step, block, record_of) for block in self.blocks]
        if len(blocks) == 1:
            return blocks[0]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def _block(self, step: int, block: range, record_of) -> Batch:
        shape = (len(block), self.prepared.metadata.sequence_length)
        input_ids_BL = np.full(shape, self.prepared.tokenizer.pad_id, np.int32)
        segment_ids_BL = np.zeros(shape, np.int32)
        records = [record for row in block if (record := record_of(row)) is not None]
        for row, record in enumerate(self.source.__getitems__(records)):
            input_ids_BL[row] = record["input_ids"]
            segment_ids_BL[row] = record["segment_ids"]
        places = {"segment_ids": segment_ids_BL, "position_ids": position_ids(segment_ids_BL)}
        if self.masking is None:
            return {"input_ids": input_ids_BL, **places}
        tokenizer = self.prepared.tokenizer
        masked = mask_batch(
            input_ids_BL,
            segment_ids_BL,
            self.masking,
            word_start_V=tokenizer.word_start_V,
            is_special_V=tokenizer.is_special_V,
            mask_id=tokenizer.mask_id,
            num_ordinary=tokenizer.num_ordinary,
            seed=self.mask_seed,
            step=step,
            first_row=block.start,
        )
        return {**masked, **places}


def prefetched(batches: grain.MapDataset, ahead: int) -> grain.IterDataset:
    """The batches in order, `ahead` of them made before they are asked for."""
    threads = min(ahead, available_cores())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return batches.to_iter_dataset(options)
