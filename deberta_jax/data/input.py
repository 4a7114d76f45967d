"""Prepared data to masked batches. A batch is a pure function of the seed and the step."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from deberta_jax.data.config import DataConfig
from deberta_jax.data.dataset import PreparedData
from deberta_jax.data.masking import Rows, derive_seed
from deberta_jax.data.packed_text import TRAIN, VALIDATION
from deberta_jax.data.tokenizer import Tokenizer
from deberta_jax.errors import UserError
from deberta_jax.parallel.processes import available_cores

Batch = Rows
# `(text, step, first_row) -> batch`: what an objective makes of rows of packed text.
MakeBatch = Callable[[Rows, int, int], Batch]
# `(tokenizer, seed) -> MakeBatch`.
BatchMaker = Callable[[Tokenizer, int], MakeBatch]

# Grain's ranges end somewhere; no run gets this far.
FOREVER = 1 << 48


def train_batches(
    prepared: PreparedData,
    config: DataConfig,
    batch_maker: BatchMaker,
    *,
    batch_size: int,
    seed: int,
    start_sample: int = 0,
    rows: Sequence[range] = (),
) -> Iterator[Batch]:
    """Yields this process's rows of the global batches from `start_sample` on, without end.

    The samples are the records of the train split, shuffled anew in every epoch. Batch k of this
    stream is samples [start_sample + k B, start_sample + (k + 1) B); it depends on the seed, the
    batch size and its first sample alone. So the number of samples is the whole position of the
    input, to start at one costs nothing, and another batch size neither skips nor repeats any.

    Args:
        prepared: the data.
        config: how far ahead to read.
        batch_maker: what makes batches of rows of text, such as `Objective.batch_maker`.
        batch_size: rows of a global batch, B.
        seed: of the order and of what is drawn for a batch.
        start_sample: samples read before.
        rows: those of each batch that this process reads, one block after another; all of them
            by default.

    Yields:
        What `batch_maker` makes of input_ids: int32 [B, L], segment_ids: int32 [B, L], 0 for
        padding, and position_ids: int32 [B, L], from 0 in every segment; B is the number of `rows`.
    """
    own = _Rows(prepared, TRAIN, batch_maker, batch_size, tuple(rows), seed)
    order = grain.MapDataset.range(len(own.source))
    order = order.shuffle(seed=derive_seed(seed, "shuffle") % 2**32).repeat()
    # What is drawn for a batch is named by its number, rounded up after another batch size.
    first_step = -(-start_sample // batch_size)

    def batch_at(index: int) -> Batch:
        start = start_sample + index * batch_size
        return own.batch(first_step + index, lambda row: int(order[start + row]))

    return iter(prefetched(grain.MapDataset.range(FOREVER).map(batch_at), config.prefetch))


def validation_batches(
    prepared: PreparedData,
    config: DataConfig,
    batch_maker: BatchMaker,
    *,
    batch_size: int,
    seed: int,
    num_batches: int = 0,
    rows: Sequence[range] = (),
) -> Iterator[Batch]:
    """Yields this process's rows of the validation split: same order, same targets every time.

    The batches are those of `train_batches` in form. The last is filled up with rows of padding,
    whose weights are 0. At most `num_batches` are made, 0: all.
    """
    own = _Rows(prepared, VALIDATION, batch_maker, batch_size, tuple(rows), seed)
    total = len(own.source)
    available = -(-total // batch_size)

    def batch_at(index: int) -> Batch:
        first = index * batch_size
        return own.batch(index, lambda row: first + row if first + row < total else None)

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
    """int32 [B, L]: each token's position in its segment, from 0; 0 for padding (segment 0)."""
    index_L = np.arange(segment_ids_BL.shape[1], dtype=np.int32)
    start_BL = np.zeros(segment_ids_BL.shape, np.int32)
    changes_BL = segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
    start_BL[:, 1:] = np.where(changes_BL, index_L[1:], 0)
    start_BL = np.maximum.accumulate(start_BL, axis=1)
    return np.where(segment_ids_BL > 0, index_L - start_BL, 0)


@dataclasses.dataclass
class _Rows:
    """The rows of every global batch of a split that one process reads."""

    prepared: PreparedData
    split: str
    batch_maker: BatchMaker
    batch_size: int
    blocks: tuple[range, ...]
    seed: int

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: it has to be at least 1")
        self.blocks = self.blocks or (range(self.batch_size),)
        self.source = self.prepared.source(self.split)
        seed = derive_seed(self.seed, f"{self.split} masks")
        self.make_batch = self.batch_maker(self.prepared.tokenizer, seed)

    def batch(self, step: int, record_of: Callable[[int], int | None]) -> Batch:
        """The rows of global batch `step`; a row of no record is padding."""
        blocks = [self._block(step, block, record_of) for block in self.blocks]
        if len(blocks) == 1:
            return blocks[0]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def _block(self, step: int, block: range, record_of: Callable) -> Batch:
        shape = (len(block), self.prepared.metadata.sequence_length)
        input_ids_BL = np.full(shape, self.prepared.tokenizer.pad_id, np.int32)
        segment_ids_BL = np.zeros(shape, np.int32)
        records = [record for row in block if (record := record_of(row)) is not None]
        for row, record in enumerate(self.source.__getitems__(records)):
            input_ids_BL[row] = record["input_ids"]
            segment_ids_BL[row] = record["segment_ids"]
        text = {
            "input_ids": input_ids_BL,
            "segment_ids": segment_ids_BL,
            "position_ids": position_ids(segment_ids_BL),
        }
        return self.make_batch(text, step, block.start)


def prefetched(batches: grain.MapDataset, ahead: int) -> grain.IterDataset:
    """The batches in order, `ahead` of them made before they are asked for."""
    threads = min(ahead, available_cores())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return batches.to_iter_dataset(options)
