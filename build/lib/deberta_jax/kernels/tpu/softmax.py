"""The online softmax of both forward kernels, in base 2: block of keys by block of keys."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.kernels.tpu import tiles


class Sums(NamedTuple):
    """What gathers over the blocks of keys, for each head of a cell and each query.

    Attributes:
        top: [heads, 1, Q], the largest score.
        total: [heads, 1, Q], the sum of exponentials.
        weighted: [heads, D, Q], the weighted sum of values.
    """

    top: Any
    total: Any
    weighted: Any

    def start(self) -> None:
        self.top[...] = jnp.full_like(self.top, tiles.FLOOR)
        self.total[...] = jnp.zeros_like(self.total)
        self.weighted[...] = jnp.zeros_like(self.weighted)

    def add(self, e: int, score, row, kept, value) -> None:
        """Adds keys to head `e`.

        Args:
            e: head of the cell.
            score: [K, Q], UNSEEN where a query does not see a key.
            row: added to all scores of a query, [1, Q] or 0.
            kept: bool [K, Q], what dropout leaves; None for all.
            value: [D, K].
        """
        top = jnp.maximum(self.top[e], jnp.max(score, axis=0, keepdims=True) + row)
        decay = jnp.exp2(self.top[e] - top)
        weight = jnp.exp2(score + (row - top))
        self.top[e] = top
        self.total[e] = self.total[e] * decay + jnp.sum(weight, axis=0, keepdims=True)
        if kept is not None:
            weight = jnp.where(kept, weight, 0.0)
        product = tiles.product(value, weight.astype(value.dtype), (1, 0))
        self.weighted[e] = self.weighted[e] * decay + product

    def finish(self, blocks, output_ref, lse_ref) -> None:
        for e in range(blocks.heads):
            total = self.total[e]
            some = total > 0
            scale = 1 / (jnp.where(some, total, 1.0) * (1 - blocks.rate))
            output_ref[0, e] = (self.weighted[e] * scale).astype(output_ref.dtype)
            # Where nothing is seen, the backward pass gets exp2(score - lse) = 0.
            lse_ref[0, e] = jnp.where(some, self.top[e] + jnp.log2(total), -tiles.UNSEEN)


def scratch(heads: int, size: int, queries: int) -> list:
    """The VMEM of `Sums`, in its order."""
    shapes = (heads, 1, queries), (heads, 1, queries), (heads, size, queries)
    return [pltpu.VMEM(shape, jnp.float32) for shape in shapes]
