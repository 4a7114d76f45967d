"""Examples to batches of few static shapes. A batch is a pure function of the seed and the step."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from deberta_jax.data.input import FOREVER, Batch, prefetched
from deberta_jax.data.masking import derive_seed
from deberta_jax.data.tasks import encoded
from deberta_jax.data.tasks.encoded import Item
from deberta_jax.errors import UserError

# Lengths are multiples of it: few enough to choose among, and what vector units like.
_MULTIPLE = 8
_AHEAD = 4


def choose_lengths(lengths: Sequence[int], count: int) -> tuple[int, ...]:
    """At most `count` lengths to pad to, so that the padding of `lengths` together is least.

    The largest holds the longest; all are multiples of 8. Exact, by dynamic programming over the
    distribution of lengths.
    """
    blocks = np.bincount(-(-np.maximum(lengths, 1) // _MULTIPLE))
    below = np.cumsum(blocks)  # inputs of at most so many blocks
    most = len(blocks) - 1
    # cost[m]: tokens of all inputs of at most m blocks, in the buckets chosen so far.
    cost, chosen = np.full(most + 1, np.inf), []
    cost[0] = 0
    for _ in range(max(1, min(count, most))):
        # A last bucket of m blocks, after one of k.
        added = np.arange(most + 1)[:, None] * (below[:, None] - below[None])
        added = np.where(np.tri(most + 1, k=-1, dtype=bool), added + cost[None], np.inf)
        before = np.argmin(added, axis=1)
        better = added[np.arange(most + 1), before] < cost
        before = np.where(better, before, -1)  # -1: one bucket fewer does as well
        cost = np.minimum(cost, added[np.arange(most + 1), np.maximum(before, 0)])
        chosen.append(before)
    lengths, size = [], most
    for before in reversed(chosen):
        if before[size] >= 0:
            lengths.append(size * _MULTIPLE)
            size = int(before[size])
    return tuple(sorted(lengths))


class Batches:
    """The batches of a set of examples, or some of the rows of each."""

    def __init__(
        self,
        items: Sequence[Item],
        lengths: tuple[int, ...],
        batch_size: int,
        pad_id: int,
        seed: int = 0,
    ):
        """Takes the examples; batches are made when asked for.

        Args:
            items: the examples; none is longer than the last of `lengths`.
            lengths: what batches are padded to, ascending.
            batch_size: rows of a batch, over all processes.
            pad_id: the token of padding.
            seed: of the order.

        Raises:
            UserError: the batch has no rows.
        """
        if batch_size < 1:
            raise UserError(f"train.batch_size is {batch_size}; it must be at least 1")
        self._items, self._lengths, self._pad_id = items, np.array(lengths), pad_id
        self._batch_size, self._seed = batch_size, seed
        sizes = np.array([item["input_ids"].shape[-1] for item in items], int)
        self._bucket = np.searchsorted(self._lengths, sizes)
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    @property
    def per_epoch(self) -> int:
        """Batches that hold every example once; the last of each is filled up."""
        return -(-len(self._items) // self._batch_size)

    def padded_tokens(self) -> int:
        """Tokens of an epoch's inputs, padding included."""
        rows = np.prod([self._items[0]["input_ids"].shape[:-1]], dtype=int)
        return sum(self._batch_size * int(rows) * self._length(group) for group in self._epoch(0))

    def _make_epoch(self, epoch: int) -> list[np.ndarray]:
        """The examples of each batch of an epoch, by number.

        Shuffled, put together by bucket, cut into batches, and those shuffled: a batch has one
        length, and which examples it has is chance. Only where two buckets meet are they mixed.
        """
        rng = np.random.default_rng((derive_seed(self._seed, "task order"), epoch))
        order = rng.permutation(len(self._items))
        order = order[np.argsort(self._bucket[order], kind="stable")]
        groups = self._groups(order)
        return [groups[index] for index in rng.permutation(len(groups))]

    def _groups(self, order):
        starts = range(0, len(order), self._batch_size)
        return [order[start : start + self._batch_size] for start in starts]

    def train(self, start_step: int = 0, rows: Sequence[range] = ()) -> Iterator[Batch]:
        """The batches from `start_step` on, without end; of each, `rows` (all by default)."""

        def batch_at(step: int) -> Batch:
            epoch, index = divmod(step, self.per_epoch)
            return self._make(self._epoch(epoch)[index], rows)

        return iter(prefetched(grain.MapDataset.range(start_step, FOREVER).map(batch_at), _AHEAD))

    def once(self, rows: Sequence[range] = ()) -> Iterator[tuple[np.ndarray, Batch]]:
        """(numbers of a whole batch's examples, its `rows`) over all examples once, in order."""
        order = np.argsort(self._bucket, kind="stable")
        for group in self._groups(order):
            yield group, self._make(group, rows)

    def _length(self, group: np.ndarray) -> int:
        return int(self._lengths[self._bucket[group].max()])

    def _make(self, group: np.ndarray, rows: Sequence[range]) -> Batch:
        """Rows of a batch of some examples, filled up with rows that weigh nothing."""
        length = self._length(group)
        numbers = list(itertools.chain(*rows or [range(self._batch_size)]))
        batch = {}
        for name, sample in self._items[0].items():
            fill = self._pad_id if name == "input_ids" else 0
            tokens = sample.ndim and name not in encoded.WITHOUT_TOKENS
            shape = (*sample.shape[:-1], length) if tokens else sample.shape
            values = np.full((len(numbers), *shape), fill, sample.dtype)
            for position, row in enumerate(numbers):
                if row < len(group):
                    example = self._items[group[row]][name]
                    own = (..., slice(example.shape[-1])) if tokens else ()
                    values[(position, *own)] = example
            batch[name] = values
        return batch
