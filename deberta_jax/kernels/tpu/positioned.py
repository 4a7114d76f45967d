"""Fused disentangled attention for queries at any positions: a few hundred of many tokens.

The function around the two kernels; `implementation` has the one for every token in order.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from deberta_jax.kernels.protocol import AttentionCall
from deberta_jax.kernels.relative import Relative
from deberta_jax.kernels.tpu.blocks import TILE, Blocks, choose, distance_rows
from deberta_jax.kernels.tpu.operands import (
    PositionedOperands,
    in_types_of,
    pad,
    seeds,
    tables,
)
from deberta_jax.kernels.tpu.positioned_backward import backward
from deberta_jax.kernels.tpu.positioned_forward import forward
from deberta_jax.kernels.tpu.positioned_scores import PositionedShape, rows_of_columns


def positioned_attention(call: AttentionCall, interpret: bool = False) -> Float[Array, "B P H D"]:
    """Attention of queries at `call.query_positions_BQ`, in any order; positions may repeat.

    Queries at near positions side by side cost the least where there is more than one block of
    keys. Dropout depends on the positions, not on the order, of the queries.

    Raises:
        ValueError: the call has no positions.
    """
    positions_BP = call.query_positions_BQ
    if positions_BP is None:
        raise ValueError("the call has queries in order: it has no positions")
    length, heads, size = call.key_BKHD.shape[1:]
    queries, relative = call.query_BQHD.shape[1], call.relative
    rate, dtype = float(call.dropout_rate), call.query_BQHD.dtype
    blocks = choose(length, heads, size, relative, call.causal, rate, dtype, interpret)
    blocks = _beyond_reach(blocks, relative)
    shape = _shape(relative, blocks)
    padded = -(-queries // TILE) * TILE
    query, key, value = (
        pad(jnp.transpose(x, (0, 2, 3, 1)), to)
        for x, to in (
            (call.query_BQHD * jnp.asarray(blocks.scale, dtype), padded),
            (call.key_BKHD, blocks.length),
            (call.value_BKHD, blocks.length),
        )
    )
    query_segments = pad(call.query_segments_BQ.astype(jnp.int32), padded)
    positions = pad(positions_BP.astype(jnp.int32), padded)
    key_segments = pad(call.key_segments_BK.astype(jnp.int32), blocks.length)
    output = _attention(
        shape,
        (query, key, value),
        tables(relative, blocks, dtype),
        _rows(relative, blocks, dtype),
        (query_segments, key_segments),
        positions,
        seeds(call.dropout_rng if rate else None, call.first),
    )
    return jnp.transpose(output, (0, 3, 1, 2))[:, :queries]


def _beyond_reach(blocks: Blocks, relative: Relative | None) -> Blocks:
    """With near offsets such that a query `near` blocks away reads the outermost row alone."""
    if blocks.near < blocks.count - 1 and relative is not None:
        edge = -blocks.block * blocks.near
        inner, outer = distance_rows(relative, np.array([edge, edge - 1]))
        if inner != outer:
            return dataclasses.replace(blocks, near=blocks.near + 1)
    return blocks


def _shape(relative: Relative | None, blocks: Blocks) -> PositionedShape:
    """A short sequence's tiles of keys do not reach all tiles of p2c's rows."""
    if relative is None or not blocks.p2c:
        return PositionedShape(blocks, ())
    row_tiles = []
    for key in range(0, blocks.block, TILE):
        if blocks.single:
            distances = np.arange(1 - key - TILE, blocks.block - key)
        else:
            distances = np.arange(1 - blocks.length, blocks.length)
        tile = distance_rows(relative, distances) // TILE
        row_tiles.append((int(tile.min()), int(tile.max()) + 1))
    return PositionedShape(blocks, tuple(row_tiles))


def _rows(
    relative: Relative | None, blocks: Blocks, dtype: DTypeLike
) -> tuple[Float[Array, "H D R"] | None, Int[Array, "W 128"] | None]:
    """(p2c's rows as they stand; the row of each column of the tables)."""
    if relative is None or relative.query_RHD is None:
        return None, None
    rows_HDR = jnp.transpose(relative.query_RHD * blocks.scale, (1, 2, 0)).astype(dtype)
    rows_HDR = pad(rows_HDR, -(-rows_HDR.shape[-1] // TILE) * TILE)
    # Their gradient is that of the table.
    of_column = distance_rows(relative, -blocks.distances)
    return jax.lax.stop_gradient(rows_HDR), rows_of_columns(blocks, of_column)


def _ranges(
    query_segments_BP: Int[Array, "B P"], positions_BP: Int[Array, "B P"]
) -> Int[Array, "B I 3"]:
    """First and last position, and whether any repeats, of what sees in a tile."""
    segments, positions = (
        x.reshape(x.shape[0], -1, TILE) for x in (query_segments_BP, positions_BP)
    )
    live = segments > 0
    first = jnp.min(jnp.where(live, positions, np.iinfo(np.int32).max), axis=-1)
    last = jnp.max(jnp.where(live, positions, -1), axis=-1)
    same = (positions[..., None] == positions[..., None, :]) & live[..., None] & live[..., None, :]
    repeats = jnp.any(same & np.tri(TILE, k=-1, dtype=bool), axis=(-1, -2))
    return jnp.stack([first, last, repeats.astype(jnp.int32)], axis=-1)


def _visits(
    blocks: Blocks,
    query_segments_BP: Int[Array, "B P"],
    key_segments_BK: Int[Array, "B K"],
    ranges: Int[Array, "B I 3"],
) -> Int[Array, "B I J"]:
    """Whether tile and block may share a document, by their ranges of ids."""
    batch = len(query_segments_BP)
    query, key = (
        query_segments_BP.reshape(batch, -1, 1, TILE),
        key_segments_BK.reshape(batch, 1, -1, blocks.block),
    )
    low = [jnp.min(jnp.where(x > 0, x, np.iinfo(np.int32).max), axis=-1) for x in (query, key)]
    high = [jnp.max(x, axis=-1) for x in (query, key)]
    shared = (low[0] <= high[1]) & (low[1] <= high[0])
    if blocks.causal:
        shared &= ranges[:, :, 1:2] >= np.arange(blocks.count) * blocks.block
    return shared.astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(shape, content, tables, rows, segments, positions, seeds):
    return _forward(shape, content, tables, rows, segments, positions, seeds)[0]


def _forward(shape, content, tables, rows, segments, positions, seeds):
    operands = _operands(shape.blocks, content, (*tables, *rows), segments, positions, seeds)
    output, lse = forward(shape, operands)
    return output, (content, (*tables, *rows), segments, positions, seeds, output, lse)


def _backward(shape, residuals, gradient):
    content, tables, (query_segments, key_segments), positions, seeds, output, lse = residuals
    # The padding of the list of positions repeats a position, which costs the kernel time.
    query_segments = jnp.where(jnp.any(gradient != 0, axis=(1, 2)), query_segments, 0)
    segments = query_segments, key_segments
    operands = _operands(shape.blocks, content, tables, segments, positions, seeds)
    *d_content, d_tables = backward(shape, operands, output, lse, gradient)
    return tuple(d_content), in_types_of(tables[:2], d_tables), None, None, None, None


def _operands(
    blocks: Blocks,
    content: tuple[Float[Array, "B H D P"], Float[Array, "B H D L"], Float[Array, "B H D L"]],
    tables: tuple[Array | None, Array | None, Array | None, Array | None],
    segments: tuple[Int[Array, "B P"], Int[Array, "B L"]],
    positions: Int[Array, "B P"],
    seeds: Int[Array, "4"],
) -> PositionedOperands:
    """What the kernels read: with the ranges of positions, and the pairs of blocks to visit."""
    query_segments, key_segments = segments
    ranges = _ranges(query_segments, positions)
    visits = _visits(blocks, query_segments, key_segments, ranges)
    query_segments = jnp.where(query_segments > 0, query_segments, -1)  # not even padding's
    return PositionedOperands._make(
        [seeds, visits, ranges, *content, tables]
        + [x[:, None] for x in (query_segments, key_segments, positions)]
    )


_attention.defvjp(_forward, _backward)
