"""Scores of one pair of blocks, as both passes need them."""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from deberta_jax.kernels.tpu import tiles
from deberta_jax.kernels.tpu.blocks import TILE, Blocks
from deberta_jax.kernels.tpu.tiles import Ref, Window


class Sources(Protocol):
    """What scores are made of, in VMEM; None where a term is off.

    Attributes:
        query, key: [1, G, D, T].
        key_table, query_table: [G, D, W], a column for each distance.
        c2p: filled by `fill_c2p`.
    """

    @property
    def query(self) -> Ref: ...
    @property
    def key(self) -> Ref: ...
    @property
    def key_table(self) -> Ref: ...
    @property
    def query_table(self) -> Ref: ...
    @property
    def c2p(self) -> Ref: ...


# Of each head: scores [keys, queries], and what is added to all of a query's, [1, queries] or 0.
Scores = tuple[list[Array], list[Array] | list[float]]


def fill_c2p(blocks: Blocks, refs: Sources, offset: Array) -> None:
    """Fills `refs.c2p` with Qc_i . Kr_delta(i, j) of a near pair, folded [keys, queries]."""
    for tile in range(blocks.block // TILE):
        queries = slice(tile * TILE, (tile + 1) * TILE)
        window = table_window(blocks, -offset, tile)
        products = [
            tiles.product(refs.query[0, e, :, queries], refs.key_table[e, :, window], (0, 0))
            for e in range(blocks.heads)
        ]
        refs.c2p[:, queries] = tiles.skew(tiles.fold(products, blocks), blocks).T


def scores(blocks: Blocks, refs: Sources, near: bool, offset: Array, keys: slice) -> Scores:
    """Of a pair of blocks `offset` blocks apart, for the keys `keys` of the block."""
    if near:
        return _near_scores(blocks, refs, offset, keys), [0.0] * blocks.heads
    return far_scores(blocks, refs, offset, keys)


def _near_scores(blocks: Blocks, refs: Sources, offset: Array, keys: slice) -> list[Array]:
    bias = []
    if blocks.c2p:
        bias.append(refs.c2p[keys])
    if blocks.p2c:
        bias.append(_p2c(blocks, refs, offset, keys))
    scores = []
    for e in range(blocks.heads):
        score = tiles.product(refs.key[0, e, :, keys], refs.query[0, e], (0, 0))
        for folded in bias:
            score += tiles.unfold(folded, e, blocks)
        scores.append(score)
    return scores


def _p2c(blocks: Blocks, refs: Sources, offset: Array, keys: slice) -> Array:
    """Qr_delta(i, j) . Kc_j of a near pair, folded [keys, queries]."""
    parts = []
    for start in range(keys.start, keys.stop, TILE):
        window = table_window(blocks, offset, start // TILE)
        products = [
            tiles.product(
                refs.key[0, e, :, start : start + TILE], refs.query_table[e, :, window], (0, 0)
            )
            for e in range(blocks.heads)
        ]
        parts.append(tiles.skew(tiles.fold(products, blocks), blocks))
    return jnp.concatenate(parts, axis=0)


def table_window(blocks: Blocks, offset: Array, tile: int) -> Window:
    """The columns that one tile of a block can reach in its table, `offset` blocks away."""
    width = blocks.block + TILE
    if blocks.single:
        return pl.ds(blocks.window(0, tile), width)
    return pl.ds(pl.multiple_of(blocks.window(offset, tile), TILE), width)


def far_scores(blocks: Blocks, refs: Sources, offset: Array, keys: slice) -> Scores:
    """Of a far pair, whose distances share one relative row.

    Qc_i Kc_j + Qc_i Kr + Qr Kc_j = (Qc_i + Qr) Kc_j + Qc_i Kr: one product, and one number a query.
    """
    scores, rows = [], []
    for e in range(blocks.heads):
        query = refs.query[0, e]
        if blocks.c2p:
            relative_key = far_row(blocks, refs.key_table, e, -offset)
            rows.append(jnp.sum(query.astype(jnp.float32) * relative_key, axis=0, keepdims=True))
        query = far_query(blocks, query, refs.query_table, e, offset)
        scores.append(tiles.product(refs.key[0, e, :, keys], query, (0, 0)))
    return scores, rows or [0.0] * blocks.heads


def far_query(
    blocks: Blocks, query: Float[Array, "D Q"], query_table_ref: Ref, e: int, offset: Array
) -> Float[Array, "D Q"]:
    """Qc_i + Qr of a far pair, in the type of the query."""
    if not blocks.p2c:
        return query
    return (query + far_row(blocks, query_table_ref, e, offset)).astype(query.dtype)


def far_row(blocks: Blocks, table_ref: Ref, e: int, offset: Array) -> Float[Array, "D 1"]:
    """float32: the one relative row of a far pair, the outermost column on its side."""
    first = table_ref[e, :, :TILE][:, :1]
    last = table_ref[e, :, blocks.table_width - TILE :][:, TILE - 1 :]
    return jnp.where(offset > 0, last, first).astype(jnp.float32)


def add_far_row(
    blocks: Blocks, d_table_ref: Ref, e: int, offset: Array, total_D1: Float[Array, "D 1"]
) -> None:
    """Adds to the outermost column on the side of `offset`, where `far_row` reads."""
    lanes = jax.lax.broadcasted_iota(jnp.int32, (total_D1.shape[0], TILE), 1)
    last = jnp.where(offset > 0, 1, 0)
    edge = pl.ds(pl.multiple_of(last * (blocks.table_width - TILE), TILE), TILE)
    d_table_ref[e, :, edge] += jnp.where(lanes == last * (TILE - 1), total_D1, 0.0)


def gradient_units(blocks: Blocks) -> np.float32:
    """What the gradient by a score in bits, times 1 - rate, still lacks."""
    return np.float32(np.log(2) / (1 - blocks.rate))


def when_visited(
    blocks: Blocks, visited: Array, offset: Array, attend: Callable[[bool], None]
) -> None:
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
