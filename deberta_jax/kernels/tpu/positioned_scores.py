"""Scores of a tile of queries at any positions against a block of keys, as both passes need them.

A block of keys sees a query's position as its `spot`: how far it stands from the block, cut off
where the relative tables end, counted from 0. Beyond, every distance shares the outermost row, so
a query moved to the last spot reads what it should.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Int

from deberta_jax.kernels.tpu import scores as square
from deberta_jax.kernels.tpu import tiles
from deberta_jax.kernels.tpu.blocks import TILE, Blocks
from deberta_jax.kernels.tpu.tiles import InOrder, Ref, Window

_SUBLANES = 8
_LOW = 0xFFFF


class PositionedShape(NamedTuple):
    """The static shape of one call.

    Attributes:
        blocks: of keys.
        row_tiles: for each tile of keys of a block, the first of the tiles of p2c's rows that it
            reads, and the end of them.
    """

    blocks: Blocks
    row_tiles: tuple[tuple[int, int], ...]


class Refs(NamedTuple):
    """What scores are made of, in VMEM; None where a term is off.

    Attributes:
        query, key: [1, G, D, T].
        key_table, query_table: [G, D, W], a column for each distance.
        query_rows: [G, D, R], p2c's rows as they stand: fewer than there are distances.
        row_of_column: int32 [W, TILE], see `rows_of_columns`.
        c2p: [W, queries], filled by `fill_c2p`.
    """

    query: Ref
    key: Ref
    key_table: Ref
    query_table: Ref
    query_rows: Ref
    row_of_column: Ref
    c2p: Ref


class TilePositions(NamedTuple):
    """Where a tile of queries stands: int32 [1, Q] each, first and last, and the key block met."""

    of_query: Int[Array, "1 Q"]
    first: Array
    last: Array
    j: Array


_T = TypeVar("_T")


def present(tables: Iterable[_T | None]) -> list[_T]:
    """Those of the terms that are on."""
    return [table for table in tables if table is not None]


def table_specs(shape: PositionedShape, tables: Sequence[Array | None]) -> list[pl.BlockSpec]:
    """Block specifications of `present(tables)` for grids whose first axis is the head."""
    together = shape.blocks.heads
    specs = [
        None if t is None else pl.BlockSpec((together, *t.shape[1:]), lambda h, *_: (h, 0, 0))
        for t in tables[:3]
    ]
    if tables[3] is not None:
        specs.append(pl.BlockSpec(tables[3].shape, lambda *_: (0, 0)))
    return present(specs)


def split_tables(blocks: Blocks, refs: Sequence[Ref]) -> tuple[list[Ref], list[Ref]]:
    """(the tables' references, None where a term is off; the references behind them)."""
    rest = list(refs)
    on = blocks.c2p, blocks.p2c, blocks.p2c, blocks.p2c
    return [rest.pop(0) if term else None for term in on], rest


def spots(blocks: Blocks) -> int:
    """How many there are."""
    return blocks.block * (1 + 2 * blocks.near)


def spot(blocks: Blocks, position: Array, j: Array) -> Array:
    """Spot of the positions (any shape) as key block `j` sees them."""
    return jnp.clip(position - _start(blocks, j), 0, spots(blocks) - 1)


def _start(blocks: Blocks, j: Array) -> Array:
    return (j - blocks.near) * blocks.block


def clips(blocks: Blocks, position: TilePositions) -> Array:
    """Whether a query of the tile stands beyond the spots."""
    start = _start(blocks, position.j)
    return (position.first < start) | (position.last >= start + spots(blocks))


def in_order(
    blocks: Blocks, visits_ref: Ref, ranges_ref: Ref, count: Array | int
) -> tuple[InOrder, InOrder]:
    """Both as [B, I, J] and [B, I, 3], of `count` tiles of queries."""
    visits = tiles.InOrder(visits_ref, count, blocks.count)
    return visits, tiles.InOrder(ranges_ref, count, 3)


def when_visited(
    blocks: Blocks,
    visits: InOrder,
    ranges: InOrder,
    cell: tuple[Array, Array, Array],
    attend: Callable[[bool], None],
) -> None:
    """Runs `attend(near)` unless no query of the tile sees a key of the block.

    `cell` is (item, query tile i, key block j).
    """
    tables = blocks.c2p or blocks.p2c
    if blocks.single:
        attend(tables)
        return
    item, i, j = cell
    visited, start = visits[item, i, j] > 0, _start(blocks, j)
    if not tables or blocks.near == blocks.count - 1:
        pl.when(visited)(lambda: attend(tables))
        return
    near = (ranges[item, i, 1] >= start) & (ranges[item, i, 0] < start + spots(blocks))
    pl.when(visited & near)(lambda: attend(True))
    pl.when(visited & jnp.logical_not(near))(lambda: attend(False))


def each_span(blocks: Blocks, position: TilePositions, step: Callable[[Array | int], None]) -> None:
    """`step(span)` for each span of spots, as many as a block has keys, with queries in it.

    A tile of keys sees a span through a window of one tile more: the last key of the tile from
    column 0 on, the first from column TILE - 1.
    """
    if blocks.single:
        step(0)
        return
    begin, end = (
        jax.lax.div(spot(blocks, edge, position.j), blocks.block)
        for edge in (position.first, position.last)
    )
    jax.lax.fori_loop(begin, end + 1, lambda span, _: step(span), None)


def visible(
    blocks: Blocks,
    query_segments_1Q: Int[Array, "1 Q"],
    key_segments_1K: Int[Array, "1 K"],
    position: TilePositions,
    tile: int,
) -> Bool[Array, "T Q"]:
    """See `tiles.visible`."""
    key_start = position.j * blocks.block + tile * TILE
    segments = query_segments_1Q, key_segments_1K[:, tile * TILE : (tile + 1) * TILE]
    return tiles.visible(blocks, *segments, _less_lane(position.of_query), key_start)


def kept(
    blocks: Blocks, seeds_ref: Ref, item: Array, head: Array, position: TilePositions, tile: int
) -> list[Bool[Array, "T Q"]] | None:
    """See `tiles.kept`: queries at one position drop the same, here and in any other pass."""
    if not blocks.rate:
        return None
    starts = _less_lane(position.of_query), position.j * blocks.block + tile * TILE
    draw = tiles.Draw(seeds_ref, item, head * blocks.heads)
    return tiles.kept(blocks, draw, *starts, (TILE, TILE))


def _less_lane(position_1Q: Int[Array, "1 Q"]) -> Int[Array, "1 Q"]:
    return position_1Q - jax.lax.broadcasted_iota(jnp.int32, position_1Q.shape, 1)


def fill_c2p(blocks: Blocks, refs: Refs) -> None:
    """Fills `refs.c2p` with Qc_i . Kr for every column of the table, folded."""
    for start in range(0, blocks.table_width, TILE):
        columns = slice(start, start + TILE)
        products = [
            tiles.product(refs.key_table[e, :, columns], refs.query[0, e], (0, 0))
            for e in range(blocks.heads)
        ]
        refs.c2p[columns] = tiles.fold(products, blocks)


def scores(
    shape: PositionedShape, refs: Refs, position: TilePositions, near: bool, tile: int
) -> square.Scores:
    """Of a tile of queries and a tile of keys."""
    blocks, keys = shape.blocks, slice(tile * TILE, (tile + 1) * TILE)
    if not near:
        return square.far_scores(blocks, refs, position.first - position.j * blocks.block, keys)
    key_TD = [refs.key[0, e, :, keys].T for e in range(blocks.heads)]
    bias = []
    if blocks.c2p:
        bias.append(slide(_reach(blocks, refs.c2p, tile), _shift(blocks, position)))
    if blocks.p2c:
        bias.append(_p2c(shape, key_TD, refs, position, tile))
    result = []
    for e in range(blocks.heads):
        score = tiles.product(key_TD[e], refs.query[0, e], (1, 0))
        for folded in bias:
            score += tiles.unfold(folded, e, blocks)
        result.append(score)
    return result, [0.0] * blocks.heads


def _p2c(
    shape: PositionedShape,
    key_TD: Sequence[Array],
    refs: Refs,
    position: TilePositions,
    tile: int,
) -> Array:
    """Qr_delta(i, j) . Kc_j of a tile of keys, folded [keys, queries].

    Each key's product with every row of the table that its tile can reach, and of those, by the
    gather that stays within a register's lanes, the row of each query.
    """
    blocks = shape.blocks
    row = _row(blocks, refs.row_of_column, position, tile)
    lane, of_lane = row & (TILE - 1), row >> 7
    result = jnp.zeros((TILE, TILE), jnp.int32 if blocks.heads == 2 else jnp.float32)
    for part in range(*shape.row_tiles[tile]):
        rows = slice(part * TILE, (part + 1) * TILE)
        products = [
            tiles.product(key_TD[e], refs.query_rows[e, :, rows], (1, 0))
            for e in range(blocks.heads)
        ]
        here = jnp.take_along_axis(tiles.fold(products, blocks), lane, axis=1)
        result = jnp.where(of_lane == part, here, result)
    return result


def _row(
    blocks: Blocks, row_of_column_ref: Ref, position: TilePositions, tile: int
) -> Int[Array, "T Q"]:
    """delta(i, j) of each key and query. See `rows_of_columns`."""
    half = _half(blocks)
    words = slide(_reach(blocks, row_of_column_ref, tile % half), _shift(blocks, position))
    return words >> 16 if tile >= half else words & _LOW


def rows_of_columns(blocks: Blocks, rows_W: np.ndarray) -> Int[Array, "W 128"]:
    """Along all lanes: the row of each column, in the order of c2p's table.

    A word's high half holds the row that the same query sees half a block later, so that sliding a
    column down to its query serves two tiles of keys.
    """
    later = np.minimum(np.arange(len(rows_W)) + _half(blocks) * TILE, len(rows_W) - 1)
    words = (rows_W | rows_W[later] << 16).astype(np.int32)
    return jnp.broadcast_to(jnp.asarray(words)[:, None], (len(words), TILE))


def _half(blocks: Blocks) -> int:
    """Tiles of keys in the first half of a block."""
    return -(-blocks.block // TILE // 2)


def _reach(blocks: Blocks, columns_ref: Ref, tile: int) -> Array:
    """The columns of a table that a tile of keys can reach, down the rows."""
    return columns_ref[tile * TILE : (tile + 1) * TILE + spots(blocks)]


def _shift(blocks: Blocks, position: TilePositions) -> Int[Array, "1 Q"]:
    """How far down its columns each query has its first key's."""
    return spots(blocks) - 1 - spot(blocks, position.of_query, position.j)


def table_window(blocks: Blocks, tile: int, span: Array | int) -> Window:
    """The columns of p2c's table through which a tile of keys sees a span of spots."""
    start = blocks.block - (tile + 1) * TILE + span * blocks.block
    if not isinstance(start, int):
        start = pl.multiple_of(start, TILE)
    return pl.ds(start, blocks.block + TILE)


def query_of(blocks: Blocks, spot_1Q: Int[Array, "1 Q"], span: Array | int) -> Int[Array, "T W"]:
    """int32 [TILE, block + TILE]: the query that a tile of keys sees at each column of its window.

    Row t holds at column c the last query at spot c + t - TILE + 1 of the span, or -1.
    """
    lane, row = (jax.lax.broadcasted_iota(jnp.int32, (TILE, TILE), axis) for axis in (1, 0))
    spot_QT = jnp.broadcast_to(spot_1Q - span * blocks.block, (TILE, TILE)).T
    turned = [jnp.full((TILE, TILE), -1, jnp.int32)]
    for start in range(0, blocks.block, TILE):
        query = jnp.where(spot_QT == lane + start, row, -1)
        last = jnp.broadcast_to(jnp.max(query, axis=0, keepdims=True), (TILE, TILE))
        turned.append(jnp.take_along_axis(last, (lane + row + 1) & (TILE - 1), axis=1))
    turned.append(turned[0])
    before = lane + row + 1 < TILE
    parts = [jnp.where(before, a, b) for a, b in itertools.pairwise(turned)]
    return jnp.concatenate(parts, axis=1)


def pick(words: Array, index: Int[Array, "T C"]) -> Array:
    """out[t, c] = words[t, index[t, c]], zero where the index is -1."""
    parts = []
    for start in range(0, index.shape[1], TILE):
        of_part = index[:, start : start + TILE]
        result = jnp.take_along_axis(words, of_part & (TILE - 1), axis=1)
        parts.append(jnp.where(of_part >= 0, result, jnp.zeros_like(result)))
    return jnp.concatenate(parts, axis=1)


def slide(words: Array, shift_1Q: Int[Array, "1 Q"]) -> Array:
    """out[t, q] = words[t + shift[q], q], TILE rows: a selection for each bit of the shift."""
    bit = _highest_bit(words.shape[0] - TILE)
    while bit >= _SUBLANES:
        height = TILE + bit
        words = jnp.where((shift_1Q & bit) > 0, _rows(words, bit, height), words[:height])
        bit //= 2
    sublane = _sublanes() + (shift_1Q & (_SUBLANES - 1))
    turned = _turned(words, sublane & (_SUBLANES - 1))
    rows = [jnp.where(sublane < _SUBLANES, a, b) for a, b in itertools.pairwise(turned)]
    return jnp.concatenate(rows[: TILE // _SUBLANES], axis=0)


def spread(words: Array, shift_1Q: Int[Array, "1 Q"], height: int) -> Array:
    """The transpose of `slide`: out[t + shift[q], q] = words[t, q], zero elsewhere, [height, Q]."""
    sublane = _sublanes() - (shift_1Q & (_SUBLANES - 1))
    none = jnp.zeros((_SUBLANES, TILE), words.dtype)
    turned = [none, *_turned(words, sublane & (_SUBLANES - 1)), none]
    rows = [jnp.where(sublane >= 0, b, a) for a, b in itertools.pairwise(turned)]
    words = jnp.concatenate(rows, axis=0)
    bit, most = _SUBLANES, height - words.shape[0]
    while bit <= most:
        none = jnp.zeros((bit, TILE), words.dtype)
        stay, move = jnp.concatenate([words, none]), jnp.concatenate([none, words])
        words = jnp.where((shift_1Q & bit) > 0, move, stay)
        bit *= 2
    return words[:height]


def _highest_bit(number: int) -> int:
    return 1 << ((number - 1).bit_length() - 1)


def _rows(words: Array, start: int, count: int) -> Array:
    part = words[start : start + count]
    missing = count - part.shape[0]
    if not missing:
        return part
    return jnp.concatenate([part, jnp.zeros((missing, words.shape[1]), words.dtype)], axis=0)


def _sublanes() -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, (_SUBLANES, TILE), 0)


def _turned(words: Array, index: Array) -> list[Array]:
    """The register of each _SUBLANES rows, its rows picked by `index`."""
    return [
        jnp.take_along_axis(words[start : start + _SUBLANES], index, axis=0)
        for start in range(0, words.shape[0], _SUBLANES)
    ]
