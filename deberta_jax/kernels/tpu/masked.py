"""Fused disentangled attention for queries at any places: a few hundred masked tokens of many.

The function around the two kernels; `attention` has the one for every token in order.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.kernels.tpu.attention import _pad, _seeds, _tables
from deberta_jax.kernels.tpu.blocks import TILE, choose, distance_rows
from deberta_jax.kernels.tpu.masked_backward import backward
from deberta_jax.kernels.tpu.masked_forward import forward


def masked_attention(
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
    blocks = _beyond_reach(choose(length, heads, relative, causal, rate, dtype, interpret), relative)
    # Scores in bits: exp2 is what the hardware has.
    scale = np.log2(np.e) / np.sqrt((1 + blocks.c2p + blocks.p2c) * size)
    padded = -(-queries // TILE) * TILE
    query, key, value = (
        _pad(jnp.transpose(x, (0, 2, 3, 1)), to)
        for x, to in (
            (query_BPHD * jnp.asarray(scale, dtype), padded),
            (key_BKHD, blocks.length),
            (value_BKHD, blocks.length),
        )
    )
    query_segments, places = (
        _pad(x.astype(jnp.int32), padded) for x in (query_segments_BP, query_positions_BP)
    )
    key_segments = _pad(key_segments_BK.astype(jnp.int32), blocks.length)
    output = _attention(
        blocks,
        *(query, key, value),
        _tables(relative, blocks, scale, dtype),
        *(query_segments, key_segments, places),
        _seeds(dropout_rng if rate else None, first),
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


def _ranges(query_segments_BP, places_BP):
    """int32 [B, I, 3]: first and last place, and whether any repeats, of what sees in a tile."""
    segments, places = (
        x.reshape(x.shape[0], -1, TILE) for x in (query_segments_BP, places_BP)
    )
    live = segments > 0
    first = jnp.min(jnp.where(live, places, np.iinfo(np.int32).max), axis=-1)
    last = jnp.max(jnp.where(live, places, -1), axis=-1)
    same = (places[..., None] == places[..., None, :]) & live[..., None] & live[..., None, :]
    repeats = jnp.any(same & np.tri(TILE, k=-1, dtype=bool), axis=(-1, -2))
    return jnp.stack([first, last, repeats.astype(jnp.int32)], axis=-1)


def _visits(blocks, query_segments_BP, key_segments_BK, ranges):
    """int32 [B, I, J]: whether tile and block may share a document, by their ranges of ids."""
    low, high = zip(
        *(
            (jnp.min(jnp.where(x > 0, x, np.iinfo(np.int32).max), axis=-1), jnp.max(x, axis=-1))
            for x in (
                query_segments_BP.reshape(query_segments_BP.shape[0], -1, TILE),
                key_segments_BK.reshape(key_segments_BK.shape[0], -1, blocks.block),
            )
        ),
        strict=True,
    )
    shared = (low[0][:, :, None] <= high[1][:, None]) & (low[1][:, None] <= high[0][:, :, None])
    if blocks.causal:
        shared &= ranges[:, :, 1:2] >= np.arange(blocks.count) * blocks.block
    return shared.astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(blocks, query, key, value, tables, query_segments, key_segments, places, seeds):
    operands = query, key, value, tables, query_segments, key_segments, places, seeds
    return _forward(blocks, *operands)[0]


def _forward(blocks, query, key, value, tables, query_segments, key_segments, places, seeds):
    # Places of what sees nothing say nothing about what a tile needs.
    ranges = _ranges(query_segments, places)
    visits = _visits(blocks, query_segments, key_segments, ranges)
    query_segments = jnp.where(query_segments > 0, query_segments, -1)  # not even padding's
    rows = query_segments[:, None], key_segments[:, None], places[:, None]
    operands = seeds, visits, ranges, query, key, value, tables, *rows
    output, lse = forward(blocks, *operands)
    return output, (operands, output, lse)


def _backward(blocks, residuals, gradient):
    operands, output, lse = residuals
    d_query, d_key, d_value, d_tables = backward(blocks, *operands, output, lse, gradient)
    tables = operands[6]
    d_tables = tuple(
        None if table is None else d_table.astype(table.dtype)
        for table, d_table in zip(tables, d_tables, strict=True)
    )
    return d_query, d_key, d_value, d_tables, None, None, None, None


_attention.defvjp(_forward, _backward)
