"""Prepared data to masked batches. A batch is a pure function of the seed and the step."""

import dataclasses
from collections.abc import Iterable, Iterator

import grain
import numpy as np

from deberta_jax.data.config import DataConfig, MaskingConfig
from deberta_jax.data.dataset import PreparedData
from deberta_jax.data.masking import derive_seed, mask_batch, num_predictions
from deberta_jax.data.packed_text import TRAIN, VALIDATION
from deberta_jax.data.workers import available_cores
from deberta_jax.errors import UserError

Batch = dict[str, np.ndarray]

# Grain's ranges end somewhere; no run gets this far.
FOREVER = 1 << 48


def train_batches(
    prepared: PreparedData,
    config: DataConfig,
    masking: MaskingConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields this process's rows of the global batches from `start_step` on, without end.

    Global batch k is records [k B, (k + 1) B) of a stream that repeats the train split, shuffled
    anew in every epoch; process p has its p-th block of rows. A batch depends on (`seed`, k)
    alone, so a step is the whole position of the stream, and to start at one costs nothing.

    Yields:
        input_ids: int32 [B, L], targets hidden; segment_ids: int32 [B, L], 0 for padding;
        position_ids: int32 [B, L], from 0 in every segment; masked_positions, masked_labels: int32
        [B, P]; masked_weights: float32 [B, P]. See `mask_batch`. B is `batch_size / process_count`.

    Raises:
        UserError: the batch does not divide among the processes, or a masking field is out of
            range.
    """
    rows = _Rows(prepared, TRAIN, masking, batch_size, process_index, process_count, seed)
    order = grain.MapDataset.range(len(rows.source))
    order = order.shuffle(seed=derive_seed(seed, "shuffle") % 2**32).repeat()

    def batch_at(step: int) -> Batch:
        first = step * batch_size + rows.first_row
        return rows.batch(step, [int(order[first + row]) for row in range(rows.count)])

    steps = grain.MapDataset.range(start_step, FOREVER).map(batch_at)
    return iter(prefetched(steps, config.prefetch))


def validation_batches(
    prepared: PreparedData,
    config: DataConfig,
    masking: MaskingConfig,
    *,
    batch_size: int,
    seed: int,
    num_batches: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields this process's rows of the validation split: same order, same targets every time.

    The batches are those of `train_batches` in form. The last is filled up with rows of padding,
    whose weights are 0. At most `num_batches` are made, 0: all.

    Raises:
        UserError: as `train_batches`.
    """
    rows = _Rows(prepared, VALIDATION, masking, batch_size, process_index, process_count, seed)
    total = len(rows.source)
    available = -(-total // batch_size)

    def batch_at(index: int) -> Batch:
        first = index * batch_size + rows.first_row
        return rows.batch(index, range(min(first, total), min(first + rows.count, total)))

    indices = grain.MapDataset.range(min(num_batches or available, available))
    return iter(prefetched(indices.map(batch_at), config.prefetch))


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
    """One process's block of rows in every global batch of a split."""

    prepared: PreparedData
    split: str
    masking: MaskingConfig
    batch_size: int
    process_index: int
    process_count: int
    seed: int

    def __post_init__(self):
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise UserError(
                f"batch_size={self.batch_size}: it has to be a positive multiple of the number of "
                f"processes, {self.process_count}"
            )
        num_predictions(self.masking, self.prepared.metadata.sequence_length)
        self.source = self.prepared.source(self.split)
        self.count = self.batch_size // self.process_count
        self.first_row = self.process_index * self.count
        self.mask_seed = derive_seed(self.seed, f"{self.split} masks")

    def batch(self, step: int, records: Iterable[int]) -> Batch:
        """The block of global batch `step`, made of `records`, filled up with padding."""
        shape = (self.count, self.prepared.metadata.sequence_length)
        input_ids_BL = np.full(shape, self.prepared.tokenizer.pad_id, np.int32)
        segment_ids_BL = np.zeros(shape, np.int32)
        for row, record in enumerate(self.source.__getitems__(list(records))):
            input_ids_BL[row] = record["input_ids"]
            segment_ids_BL[row] = record["segment_ids"]
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
            first_row=self.first_row,
        )
        positions_BL = position_ids(segment_ids_BL)
        return {**masked, "segment_ids": segment_ids_BL, "position_ids": positions_BL}


def prefetched(batches: grain.MapDataset, ahead: int) -> grain.IterDataset:
    """The batches in order, `ahead` of them made before they are asked for."""
    threads = min(ahead, available_cores())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return batches.to_iter_dataset(options)
