"""The online softmax of both forward kernels, in base 2: block of keys by block of keys."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from deberta_jax.kernels.tpu import tiles
from deberta_jax.kernels.tpu.blocks import Blocks
from deberta_jax.kernels.tpu.tiles import Ref


class Sums(NamedTuple):
    """What gathers over the blocks of keys, for each head of a cell and each query.

    Attributes:
        top: [heads, 1, Q], the largest score.
        total: [heads, 1, Q], the sum of exponentials.
        weighted: [heads, D, Q], the weighted sum of values.
    """

    top: Ref
    total: Ref
    weighted: Ref

    def start(self) -> None:
        self.top[...] = jnp.full_like(self.top, tiles.FLOOR)
        self.total[...] = jnp.zeros_like(self.total)
        self.weighted[...] = jnp.zeros_like(self.weighted)

    def add(
        self,
        e: int,
        score: Float[Array, "K Q"],
        row: Float[Array, "1 Q"] | float,
        kept: Bool[Array, "K Q"] | None,
        value: Float[Array, "D K"],
    ) -> None:
        """Adds keys to head `e`.

        Args:
            e: head of the cell.
            score: UNSEEN where a query does not see a key.
            row: added to all scores of a query.
            kept: what dropout leaves; None for all.
            value: of the keys.
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

    def finish(self, blocks: Blocks, output_ref: Ref, lse_ref: Ref) -> None:
        """Writes the output and the log2 of the sum of exponentials."""
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
