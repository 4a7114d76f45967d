"""Scores of a tile of queries at any places against a block of keys, as both passes need them.

A query's place is told to a block of keys as its `spot`: how far it stands from the block, cut off
where the relative tables end, counted from 0. Beyond, every distance shares the outermost row, so
a query moved to the last spot reads what it should.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from deberta_jax.kernels.tpu import scores as square
from deberta_jax.kernels.tpu import tiles
from deberta_jax.kernels.tpu.blocks import TILE

_SUBLANES = 8


class Place(NamedTuple):
    """Where a tile of queries stands: int32 [1, Q] each, first and last, and the key block met."""

    of_query: jax.Array
    first: jax.Array
    last: jax.Array
    j: jax.Array


def spots(blocks):
    """How many there are."""
    return blocks.block * (1 + 2 * blocks.near)


def spot(blocks, place, j):
    """Spot of the places (any shape) as key block `j` sees them."""
    return jnp.clip(place - _start(blocks, j), 0, spots(blocks) - 1)


def _start(blocks, j):
    return (j - blocks.near) * blocks.block


def clips(blocks, place):
    """Whether a query of the tile stands beyond the spots."""
    start = _start(blocks, place.j)
    return (place.first < start) | (place.last >= start + spots(blocks))


def when_visited(blocks, visits_ref, ranges_ref, item, i, j, attend):
    """Runs `attend(near)` unless no query of the tile sees a key of the block."""
    tables = blocks.c2p or blocks.p2c
    if blocks.single:
        attend(tables)
        return
    visited, start = visits_ref[item, i, j] > 0, _start(blocks, j)
    if not tables or blocks.near == blocks.count - 1:
        pl.when(visited)(lambda: attend(tables))
        return
    near = (ranges_ref[item, i, 1] >= start) & (ranges_ref[item, i, 0] < start + spots(blocks))
    pl.when(visited & near)(lambda: attend(True))
    pl.when(visited & jnp.logical_not(near))(lambda: attend(False))


def each_column(blocks, place, step, carry):
    """`step(column, carry)` for each tile of spots that a tile of keys meets, in order.

    A key's window begins at its own place: that of the last key of a tile of keys at spot 0, that
    of the first TILE - 1 spots later.
    """
    if blocks.single:
        for column in range(spots(blocks) // TILE + 1):
            carry = step(column, carry)
        return carry
    begin = spot(blocks, place.first, place.j) >> 7
    end = ((spot(blocks, place.last, place.j) + TILE - 1) >> 7) + 1
    return jax.lax.fori_loop(begin, end, step, carry)


def visible(blocks, query_segments_1Q, key_segments_1K, place, tile):
    """bool [T, Q]: see `tiles.visible`."""
    key_start = place.j * blocks.block + tile * TILE
    segments = query_segments_1Q, key_segments_1K[:, tile * TILE : (tile + 1) * TILE]
    return tiles.visible(blocks, *segments, _less_lane(place.of_query), key_start)


def kept(blocks, seeds_ref, item, head, place, tile):
    """See `tiles.kept`: queries at one place drop the same, here and in any other pass."""
    if not blocks.rate:
        return None
    starts = _less_lane(place.of_query), place.j * blocks.block + tile * TILE
    return tiles.kept(blocks, seeds_ref, item, head * blocks.heads, *starts, TILE, TILE)


def _less_lane(place_1Q):
    return place_1Q - jax.lax.broadcasted_iota(jnp.int32, place_1Q.shape, 1)


def fill_c2p(blocks, query_ref, key_table_ref, c2p_ref):
    """Fills `c2p_ref`, [W, queries], with Qc_i . Kr for every column of the table, folded."""
    for start in range(0, blocks.table_width, TILE):
        rows = slice(start, start + TILE)
        products = [
            tiles.product(key_table_ref[e, :, rows], query_ref[0, e], (0, 0))
            for e in range(blocks.heads)
        ]
        c2p_ref[rows] = tiles.fold(products, blocks)


def scores(blocks, query_ref, key_ref, key_table_ref, query_table_ref, c2p_ref, place, near, tile):
    """([keys, queries], [1, queries]) of each head for a tile of keys; their sum is the scores."""
    keys = slice(tile * TILE, (tile + 1) * TILE)
    if not near:
        refs = query_ref, key_ref, key_table_ref, query_table_ref
        offset = place.first - place.j * blocks.block
        return square.far_scores(blocks, *refs, offset, keys)
    key_TD = [key_ref[0, e, :, keys].T for e in range(blocks.heads)]
    bias = []
    if blocks.c2p:
        shift = spots(blocks) - 1 - spot(blocks, place.of_query, place.j)
        bias.append(slide(c2p_ref[keys.start : keys.stop + spots(blocks)], shift))
    if blocks.p2c:
        bias.append(_p2c(blocks, key_TD, query_table_ref, place, tile))
    found = []
    for e in range(blocks.heads):
        score = tiles.product(key_TD[e], query_ref[0, e], (1, 0))
        for folded in bias:
            score += tiles.unfold(folded, e, blocks)
        found.append(score)
    return found, [0.0] * blocks.heads


def _p2c(blocks, key_TD, query_table_ref, place, tile):
    """Qr_delta(i, j) . Kc_j of a tile of keys, folded [keys, queries]."""
    spot_1Q = spot(blocks, place.of_query, place.j)
    column_TQ = spot_1Q + (TILE - 1) - jax.lax.broadcasted_iota(jnp.int32, (TILE, TILE), 0)
    lane, of_lane = column_TQ & (TILE - 1), column_TQ >> 7

    def add(column, found):
        window = table_window(blocks, tile, column)
        products = [
            tiles.product(key_TD[e], query_table_ref[e, :, window], (1, 0))
            for e in range(blocks.heads)
        ]
        here = jnp.take_along_axis(tiles.fold(products, blocks), lane, axis=1)
        return jnp.where(of_lane == column, here, found)

    zeros = jnp.zeros((TILE, TILE), jnp.int32 if blocks.heads == 2 else jnp.float32)
    return each_column(blocks, place, add, zeros)


def table_window(blocks, tile, column):
    """The columns of p2c's table that a tile of keys reads at the tile `column` of its window."""
    start = blocks.block - (tile + 1) * TILE + column * TILE
    return pl.ds(start if blocks.single else pl.multiple_of(start, TILE), TILE)


def query_of(spot_QT, column, before_TT):
    """(a part of the next call's result, index [T, T]): which query a column of a window stands for.

    Row t holds the last query at spot (column * TILE + lane + t - TILE + 1), or -1: those of this
    tile of spots and, `before_TT`, of the one before it.

    Args:
        spot_QT: spot of each query, along the rows.
        column: tile of the window.
        before_TT: the first result for the tile before.
    """
    lane, row = (jax.lax.broadcasted_iota(jnp.int32, (TILE, TILE), axis) for axis in (1, 0))
    query = jnp.where(spot_QT == lane + column * TILE, row, -1)
    last = jnp.broadcast_to(jnp.max(query, axis=0, keepdims=True), (TILE, TILE))
    turned = jnp.take_along_axis(last, (lane + row + 1) & (TILE - 1), axis=1)
    return turned, jnp.where(lane + row + 1 < TILE, before_TT, turned)


def slide(words, shift_1Q):
    """out[t, q] = words[t + shift[q], q], TILE rows: a selection for each bit of the shift."""
    bit = _highest_bit(words.shape[0] - TILE)
    while bit >= _SUBLANES:
        rows = TILE + bit
        words = jnp.where((shift_1Q & bit) > 0, _rows(words, bit, rows), words[:rows])
        bit //= 2
    sublane = _sublanes() + (shift_1Q & (_SUBLANES - 1))
    turned = _turned(words, sublane & (_SUBLANES - 1))
    rows = [jnp.where(sublane < _SUBLANES, a, b) for a, b in zip(turned, turned[1:])]
    return jnp.concatenate(rows[: TILE // _SUBLANES], axis=0)


def spread(words, shift_1Q, height):
    """The transpose of `slide`: out[t + shift[q], q] = words[t, q], zero elsewhere, [height, Q]."""
    sublane = _sublanes() - (shift_1Q & (_SUBLANES - 1))
    none = jnp.zeros((_SUBLANES, TILE), words.dtype)
    turned = [none, *_turned(words, sublane & (_SUBLANES - 1)), none]
    rows = [jnp.where(sublane >= 0, b, a) for a, b in zip(turned, turned[1:])]
    words = jnp.concatenate(rows, axis=0)
    bit, most = _SUBLANES, height - words.shape[0]
    while bit <= most:
        none = jnp.zeros((bit, TILE), words.dtype)
        stay, move = jnp.concatenate([words, none]), jnp.concatenate([none, words])
        words = jnp.where((shift_1Q & bit) > 0, move, stay)
        bit *= 2
    return words[:height]


def _highest_bit(number):
    return 1 << ((number - 1).bit_length() - 1)


def _rows(words, start, count):
    part = words[start : start + count]
    missing = count - part.shape[0]
    if not missing:
        return part
    return jnp.concatenate([part, jnp.zeros((missing, words.shape[1]), words.dtype)], axis=0)


def _sublanes():
    return jax.lax.broadcasted_iota(jnp.int32, (_SUBLANES, TILE), 0)


def _turned(words, index):
    """The register of each _SUBLANES rows, its rows picked by `index`."""
    return [
        jnp.take_along_axis(words[start : start + _SUBLANES], index, axis=0)
        for start in range(0, words.shape[0], _SUBLANES)
    ]
