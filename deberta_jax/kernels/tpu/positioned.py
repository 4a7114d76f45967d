"""Fused disentangled attention for queries at any places: a few hundred masked tokens of many.

The function around the two kernels; `attention` has the one for every token in order.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.kernels.tpu.blocks import TILE, choose, distance_rows
from deberta_jax.kernels.tpu.operands import pad, seeds, tables
from deberta_jax.kernels.tpu.positioned_backward import backward
from deberta_jax.kernels.tpu.positioned_forward import forward
from deberta_jax.kernels.tpu.positioned_scores import Plan, rows_of_columns


def positioned_attention(
    query_BPHD,
    key_BKHD,
    value_BKHD,
    relative,
    query_segments_BP,
    key_segments_BK,
    query_positions_BP,
    dropout_rate=0.0,
    dropout_rng=None,
    causal=False,
    first=(0, 0),
    interpret=False,
):
    """See `kernels.disentangled_attention` for the arguments not named here.

    Queries may stand in any order, and repeat places; near ones side by side cost the least where
    there is more than one block of keys.

    Args:
        first: item and head of the whole batch that this call's first ones are: dropout depends on
            them, and on the places, not on the order, of the queries.
        interpret: whether to run interpreted, without a TPU.
    """
    length, heads, size = key_BKHD.shape[1:]
    queries = query_BPHD.shape[1]
    rate, dtype = float(dropout_rate), query_BPHD.dtype
    blocks = choose(length, heads, size, relative, causal, rate, dtype, interpret)
    blocks = _beyond_reach(blocks, relative)
    plan = _plan(relative, blocks)
    padded = -(-queries // TILE) * TILE
    query, key, value = (
        pad(jnp.transpose(x, (0, 2, 3, 1)), to)
        for x, to in (
            (query_BPHD * jnp.asarray(blocks.scale, dtype), padded),
            (key_BKHD, blocks.length),
            (value_BKHD, blocks.length),
        )
    )
    query_segments, places = (
        pad(x.astype(jnp.int32), padded) for x in (query_segments_BP, query_positions_BP)
    )
    key_segments = pad(key_segments_BK.astype(jnp.int32), blocks.length)
    output = _attention(
        plan,
        *(query, key, value),
        tables(relative, blocks, dtype),
        _rows(relative, blocks, dtype),
        *(query_segments, key_segments, places),
        seeds(dropout_rng if rate else None, first),
    )
    return jnp.transpose(output, (0, 3, 1, 2))[:, :queries]


def _beyond_reach(blocks, relative):
    """With near offsets such that a query `near` blocks away reads the outermost row alone."""
    if blocks.near < blocks.count - 1 and relative is not None:
        edge = -blocks.block * blocks.near
        inner, outer = distance_rows(relative, np.array([edge, edge - 1]))
        if inner != outer:
            return dataclasses.replace(blocks, near=blocks.near + 1)
    return blocks


def _plan(relative, blocks):
    """A short sequence's tiles of keys do not reach all tiles of p2c's rows."""
    if not blocks.p2c:
        return Plan(blocks, ())
    row_tiles = []
    for key in range(0, blocks.block, TILE):
        if blocks.single:
            distances = np.arange(1 - key - TILE, blocks.block - key)
        else:
            distances = np.arange(1 - blocks.length, blocks.length)
        tile = distance_rows(relative, distances) // TILE
        row_tiles.append((int(tile.min()), int(tile.max()) + 1))
    return Plan(blocks, tuple(row_tiles))


def _rows(relative, blocks, dtype):
    """(p2c's rows as they stand, [H, D, R]; the row of each column of the tables)."""
    if not blocks.p2c:
        return None, None
    rows_HDR = jnp.transpose(relative.query_RHD * blocks.scale, (1, 2, 0)).astype(dtype)
    rows_HDR = pad(rows_HDR, -(-rows_HDR.shape[-1] // TILE) * TILE)
    # Their gradient is that of the table.
    of_column = distance_rows(relative, -blocks.distances)
    return jax.lax.stop_gradient(rows_HDR), rows_of_columns(blocks, of_column)


def _ranges(query_segments_BP, places_BP):
    """int32 [B, I, 3]: first and last place, and whether any repeats, of what sees in a tile."""
    segments, places = (x.reshape(x.shape[0], -1, TILE) for x in (query_segments_BP, places_BP))
    live = segments > 0
    first = jnp.min(jnp.where(live, places, np.iinfo(np.int32).max), axis=-1)
    last = jnp.max(jnp.where(live, places, -1), axis=-1)
    same = (places[..., None] == places[..., None, :]) & live[..., None] & live[..., None, :]
    repeats = jnp.any(same & np.tri(TILE, k=-1, dtype=bool), axis=(-1, -2))
    return jnp.stack([first, last, repeats.astype(jnp.int32)], axis=-1)


def _visits(blocks, query_segments_BP, key_segments_BK, ranges):
    """int32 [B, I, J]: whether tile and block may share a document, by their ranges of ids."""
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
def _attention(plan, query, key, value, tables, rows, query_segments, key_segments, places, seeds):
    operands = query, key, value, tables, rows, query_segments, key_segments, places, seeds
    return _forward(plan, *operands)[0]


def _forward(plan, query, key, value, tables, rows, query_segments, key_segments, places, seeds):
    segments = query_segments, key_segments
    scalars, of_tokens = _masks(plan.blocks, *segments, places)
    operands = query, key, value, (*tables, *rows)
    output, lse = forward(plan, seeds, *scalars, *operands, *of_tokens)
    return output, (operands, segments, places, seeds, output, lse)


def _backward(plan, residuals, gradient):
    operands, (query_segments, key_segments), places, seeds, output, lse = residuals
    # The padding of the list of masked tokens repeats a place, which costs the kernel time.
    query_segments = jnp.where(jnp.any(gradient != 0, axis=(1, 2)), query_segments, 0)
    scalars, of_tokens = _masks(plan.blocks, query_segments, key_segments, places)
    *d_content, d_tables = backward(
        plan, seeds, *scalars, *operands, *of_tokens, output, lse, gradient
    )
    tables = operands[3][:2]
    d_tables = tuple(
        None if table is None else d_table.astype(table.dtype)
        for table, d_table in zip(tables, d_tables, strict=True)
    )
    return *d_content, d_tables, None, None, None, None, None


def _masks(blocks, query_segments, key_segments, places):
    """((visits, ranges), (query segments, key segments, places)) as the kernels take them."""
    ranges = _ranges(query_segments, places)
    visits = _visits(blocks, query_segments, key_segments, ranges)
    query_segments = jnp.where(query_segments > 0, query_segments, -1)  # not even padding's
    of_tokens = query_segments[:, None], key_segments[:, None], places[:, None]
    return (visits, ranges), of_tokens


_attention.defvjp(_forward, _backward)
