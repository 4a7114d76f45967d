"""Scores of one pair of blocks, as both passes need them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from deberta_jax.kernels.tpu import tiles
from deberta_jax.kernels.tpu.blocks import TILE


def fill_c2p(blocks, query_ref, key_table_ref, offset, c2p_ref):
    """Fills `c2p_ref` with Qc_i . Kr_delta(i, j) of a near pair, folded [keys, queries]."""
    for tile in range(blocks.block // TILE):
        queries = slice(tile * TILE, (tile + 1) * TILE)
        window = table_window(blocks, -offset, tile)
        products = [
            tiles.product(query_ref[0, e, :, queries], key_table_ref[e, :, window], (0, 0))
            for e in range(blocks.heads)
        ]
        c2p_ref[:, queries] = tiles.skew(tiles.fold(products, blocks), blocks).T


def near_scores(blocks, query_ref, key_ref, query_table_ref, c2p_ref, offset, keys):
    """[keys, queries] of each head of a near pair, for the keys `keys` of the block."""
    bias = []
    if blocks.c2p:
        bias.append(c2p_ref[keys])
    if blocks.p2c:
        bias.append(_p2c(blocks, key_ref, query_table_ref, offset, keys))
    scores = []
    for e in range(blocks.heads):
        score = tiles.product(key_ref[0, e, :, keys], query_ref[0, e], (0, 0))
        for folded in bias:
            score += tiles.unfold(folded, e, blocks)
        scores.append(score)
    return scores


def _p2c(blocks, key_ref, query_table_ref, offset, keys):
    """Qr_delta(i, j) . Kc_j of a near pair, folded [keys, queries]."""
    parts = []
    for start in range(keys.start, keys.stop, TILE):
        window = table_window(blocks, offset, start // TILE)
        products = [
            tiles.product(
                key_ref[0, e, :, start : start + TILE], query_table_ref[e, :, window], (0, 0)
            )
            for e in range(blocks.heads)
        ]
        parts.append(tiles.skew(tiles.fold(products, blocks), blocks))
    return jnp.concatenate(parts, axis=0)


def table_window(blocks, offset, tile):
    """The columns that one tile of a block can reach in its table, `offset` blocks away."""
    start = blocks.window(0 if blocks.single else offset, tile)
    return pl.ds(start if blocks.single else pl.multiple_of(start, TILE), blocks.block + TILE)


def far_scores(blocks, query_ref, key_ref, key_table_ref, query_table_ref, offset, keys):
    """([keys, queries], [1, queries]) of each head of a far pair; their sum is the scores.

    Qc_i Kc_j + Qc_i Kr + Qr Kc_j = (Qc_i + Qr) Kc_j + Qc_i Kr: one product, and one number a query.
    """
    scores, rows = [], []
    for e in range(blocks.heads):
        query, row = query_ref[0, e], 0.0
        if blocks.c2p:
            relative_key = far_row(blocks, key_table_ref, e, -offset)
            row = jnp.sum(query.astype(jnp.float32) * relative_key, axis=0, keepdims=True)
        query = far_query(blocks, query, query_table_ref, e, offset)
        scores.append(tiles.product(key_ref[0, e, :, keys], query, (0, 0)))
        rows.append(row)
    return scores, rows


def far_query(blocks, query, query_table_ref, e, offset):
    """Qc_i + Qr of a far pair, in the type of the query."""
    if not blocks.p2c:
        return query
    return (query + far_row(blocks, query_table_ref, e, offset)).astype(query.dtype)


def far_row(blocks, table_ref, e, offset):
    """float32 [D, 1]: the one relative row of a far pair, the outermost column on its side."""
    first = table_ref[e, :, :TILE][:, :1]
    last = table_ref[e, :, blocks.table_width - TILE :][:, TILE - 1 :]
    return jnp.where(offset > 0, last, first).astype(jnp.float32)


def add_far_row(blocks, d_table_ref, e, offset, total_D1):
    """Adds to the outermost column on the side of `offset`, where `far_row` reads."""
    lanes = jax.lax.broadcasted_iota(jnp.int32, (total_D1.shape[0], TILE), 1)
    last = jnp.where(offset > 0, 1, 0)
    edge = pl.ds(pl.multiple_of(last * (blocks.table_width - TILE), TILE), TILE)
    d_table_ref[e, :, edge] += jnp.where(lanes == last * (TILE - 1), total_D1, 0.0)


def gradient_units(blocks):
    """What the gradient by a score in bits, times 1 - rate, still lacks."""
    return np.float32(np.log(2) / (1 - blocks.rate))


def when_visited(blocks, visited, offset, attend):
    """Runs `attend(near)` unless no query of the block sees a key of the other."""
    if blocks.single:
        attend(True)
        return
    near = abs(offset) <= blocks.near
    tables = blocks.c2p or blocks.p2c
    if not tables or blocks.near == blocks.count - 1:
        pl.when(visited > 0)(lambda: attend(tables))
        return
    pl.when((visited > 0) & near)(lambda: attend(True))
    pl.when((visited > 0) & jnp.logical_not(near))(lambda: attend(False))
