"""What both fused functions make of their arguments before a kernel sees them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from deberta_jax.kernels.relative import Relative
from deberta_jax.kernels.tpu.blocks import Blocks, distance_rows

Tables = tuple[Float[Array, "H D W"] | None, Float[Array, "H D W"] | None]


class Operands(NamedTuple):
    """What both kernels for queries in order read.

    Scores are in bits: the scale and log2(e) are already in the queries and in p2c's table.

    Attributes:
        seeds: of the dropout: two words of the key, first item, first head.
        visits: whether query block i and key block j share a document.
        content: queries, keys and values: one array, so that the projection that makes it is one
            matmul and nothing is copied.
        tables: (c2p's, p2c's), None where a term is off.
        query_segments: -1 is padding.
        key_segments: 0 is padding.
    """

    seeds: Int[Array, "4"]
    visits: Int[Array, "B I J"]
    content: Float[Array, "3 B H D L"]
    tables: Tables
    query_segments: Int[Array, "B 1 L"]
    key_segments: Int[Array, "B 1 L"]


class PositionedOperands(NamedTuple):
    """What both kernels for queries at any positions read.

    Scores are in bits: the scale and log2(e) are already in `query` and in p2c's table.

    Attributes:
        seeds: as of `Operands`.
        visits: whether query tile i may see anything of key block j.
        ranges: first and last position of a tile's queries that see anything, and whether any
            repeats.
        query, key, value: queries are P, in tiles; keys are L.
        tables: see `positioned_scores.Refs`: key_table to row_of_column; None where a term is off.
        query_segments: -1 is padding.
        key_segments: 0 is padding.
        positions: of the queries.
    """

    seeds: Int[Array, "4"]
    visits: Int[Array, "B I J"]
    ranges: Int[Array, "B I 3"]
    query: Float[Array, "B H D P"]
    key: Float[Array, "B H D L"]
    value: Float[Array, "B H D L"]
    tables: tuple[Array | None, Array | None, Array | None, Array | None]
    query_segments: Int[Array, "B 1 P"]
    key_segments: Int[Array, "B 1 L"]
    positions: Int[Array, "B 1 P"]


def seeds(rng: jax.Array | None, first: tuple[Array | int, Array | int]) -> Int[Array, "4"]:
    """int32 [4]: two random words, the first item, the first head."""
    words = jnp.zeros(2, jnp.int32)
    if rng is not None:
        words = jax.lax.bitcast_convert_type(jax.random.bits(rng, (2,), jnp.uint32), jnp.int32)
    return jnp.concatenate([words, jnp.stack([jnp.int32(x) for x in first])])


def pad(x: Array, length: int) -> Array:
    """`x` with zeros at the end of its last axis."""
    missing = length - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def tables(relative: Relative | None, blocks: Blocks, dtype: DTypeLike) -> Tables:
    """[H, D, W] for each term: relative rows -> a column for every distance of `blocks`.

    A matmul against a constant: a gather by another name, at a hundredth of the layer's FLOPs.
    """

    if relative is None:
        return None, None

    def table(
        rows_RHD: Float[Array, "R H D"] | None, distances: np.ndarray, factor: float
    ) -> Float[Array, "H D W"] | None:
        if rows_RHD is None:
            return None
        rows = distance_rows(relative, distances)
        one_hot_RW = jnp.asarray(np.arange(rows_RHD.shape[0])[:, None] == rows, dtype)
        precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
        rows_RHD = (rows_RHD * factor).astype(dtype)
        return jnp.einsum("RHD,RW->HDW", rows_RHD, one_hot_RW, precision=precision)

    return (
        table(relative.key_RHD, -blocks.distances, 1),
        table(relative.query_RHD, blocks.distances, blocks.scale),
    )


def in_types_of(tables: Tables, gradients: Tables) -> Tables:
    """The gradients of the tables in the types of the tables; None where a term is off."""
    d_key, d_query = (
        None if table is None or gradient is None else gradient.astype(table.dtype)
        for table, gradient in zip(tables, gradients, strict=True)
    )
    return d_key, d_query
