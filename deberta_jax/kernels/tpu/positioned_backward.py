"""The backward kernel for queries at any positions: all five gradients in one pass.

Gradients of keys and values gather over query tiles, those of queries over key blocks, those of
the tables over everything but the head; all gather in VMEM, and each is written once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from deberta_jax.kernels.tpu import positioned_scores as scoring
from deberta_jax.kernels.tpu import scores as square_scoring
from deberta_jax.kernels.tpu import tiles
from deberta_jax.kernels.tpu.blocks import TILE, Blocks
from deberta_jax.kernels.tpu.operands import PositionedOperands, Tables
from deberta_jax.kernels.tpu.tiles import InOrder, Ref, Window


def backward(
    shape: scoring.PositionedShape,
    operands: PositionedOperands,
    output: Float[Array, "B H D P"],
    lse: Float[Array, "B H 1 P"],
    gradient: Float[Array, "B H D P"],
) -> tuple[Float[Array, "B H D P"], Float[Array, "B H D L"], Float[Array, "B H D L"], Tables]:
    """Gradients of (query, key, value, (c2p's table, p2c's table)), the tables' in float32.

    Queries whose gradient is zero count as padding.

    Args:
        shape: the static shape.
        operands: those of `forward`.
        output: what it returned.
        lse: likewise.
        gradient: of its output.
    """
    query, key, value = operands.query, operands.key, operands.value
    tables = operands.tables[:2]
    wide = scoring.present(tables)
    results = pl.pallas_call(
        functools.partial(_kernel, shape),
        grid_spec=_grid_spec(shape, operands),
        out_shape=[
            *[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)],
            *[jax.ShapeDtypeStruct(t.shape, jnp.float32) for t in wide],
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary")
        ),
        name="positioned_attention_backward",
        interpret=shape.blocks.interpret,
    )(
        operands.seeds, operands.visits.reshape(-1), operands.ranges.reshape(-1),
        query, key, value,
        operands.query_segments, operands.key_segments, operands.positions,
        output, lse, gradient, *scoring.present(operands.tables),
    )  # fmt: skip
    d_query, d_key, d_value, *d_wide = results
    d_wide = [d_table * square_scoring.gradient_units(shape.blocks) for d_table in d_wide]
    d_key_table, d_query_table = (None if t is None else d_wide.pop(0) for t in tables)
    return d_query, d_key, d_value, (d_key_table, d_query_table)


def _grid_spec(
    shape: scoring.PositionedShape, operands: PositionedOperands
) -> pltpu.PrefetchScalarGridSpec:
    """Cells by heads, item, key block and query tile."""
    batch, heads, size, queries = operands.query.shape
    blocks = shape.blocks
    block, together = blocks.block, blocks.heads
    of_queries = pl.BlockSpec((1, together, size, TILE), lambda h, b, j, i, *_: (b, h, 0, i))
    of_keys = pl.BlockSpec((1, together, size, block), lambda h, b, j, i, *_: (b, h, 0, j))
    query_row = pl.BlockSpec((1, 1, TILE), lambda h, b, j, i, *_: (b, 0, i))
    key_row = pl.BlockSpec((1, 1, block), lambda h, b, j, i, *_: (b, 0, j))
    table = pl.BlockSpec((together, size, blocks.table_width), lambda h, *_: (h, 0, 0))
    lse_row = pl.BlockSpec((1, together, 1, TILE), lambda h, b, j, i, *_: (b, h, 0, i))
    whole = pl.BlockSpec((1, together, size, queries), lambda h, b, *_: (b, h, 0, 0))
    wide = scoring.present(operands.tables[:2])
    word = jnp.int32 if together == 2 else jnp.float32
    gathered = pltpu.VMEM((together, size, block), jnp.float32)
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(heads // together, batch, blocks.count, queries // TILE),
        in_specs=[
            *[of_queries, of_keys, of_keys, query_row, key_row, query_row],
            *[of_queries, lse_row, of_queries],
            *scoring.table_specs(shape, operands.tables),
        ],
        out_specs=[whole, of_keys, of_keys, *[table] * len(wide)],
        scratch_shapes=[
            *[pltpu.VMEM((together, size, queries), jnp.float32), gathered, gathered],
            *[pltpu.VMEM((block, TILE), word)] * bool(wide),
            *[pltpu.VMEM((blocks.table_width, TILE), word)] * blocks.c2p,
        ],
    )


class _Cell(NamedTuple):
    """A grid cell: its references by name, its coordinates, and where its queries stand."""

    sources: scoring.Refs
    value: Ref
    query_segments: Ref
    key_segments: Ref
    output: Ref
    lse: Ref
    gradient: Ref
    d_query: Ref
    d_key: Ref
    d_value: Ref
    d_key_table: Ref
    d_query_table: Ref
    query_sum: Ref
    key_sum: Ref
    value_sum: Ref
    by_score: Ref
    seeds: Ref
    ranges: InOrder
    head: Array
    item: Array
    j: Array
    i: Array
    of_tile: Window  # the queries of tile i
    position: scoring.TilePositions
    offset: Array  # of the tile's first query, from the first key of the block


def _cell(blocks: Blocks, seeds_ref: Ref, ranges: InOrder, refs: tuple[Ref, ...]) -> _Cell:
    query, key, value, query_segments, key_segments, positions, *results = refs[:9]
    tables, rest = scoring.split_tables(blocks, refs[9:])
    outputs = [rest.pop(0) for _ in range(3)]
    outputs += [rest.pop(0) if on else None for on in (blocks.c2p, blocks.p2c)]
    sums = [rest.pop(0) for _ in range(3)]
    sums.append(rest.pop(0) if blocks.c2p or blocks.p2c else None)
    c2p = rest.pop() if blocks.c2p else None
    sources = scoring.Refs._make([query, key, *tables, c2p])
    head, item, j, i = (pl.program_id(axis) for axis in range(4))
    of_tile = pl.ds(pl.multiple_of(i * TILE, TILE), TILE)
    position = scoring.TilePositions(positions[0], ranges[item, i, 0], ranges[item, i, 1], j)
    offset = position.first - j * blocks.block
    inputs = [value, query_segments, key_segments, *results]
    coordinates = [head, item, j, i, of_tile, position, offset]
    return _Cell._make([sources, *inputs, *outputs, *sums, seeds_ref, ranges, *coordinates])


def _kernel(
    shape: scoring.PositionedShape, seeds_ref: Ref, visits_ref: Ref, ranges_ref: Ref, *refs: Ref
) -> None:
    blocks = shape.blocks
    visits, ranges = scoring.in_order(blocks, visits_ref, ranges_ref, pl.num_programs(3))
    cell = _cell(blocks, seeds_ref, ranges, refs)
    item, j, i = cell.item, cell.j, cell.i

    @pl.when((item == 0) & (j == 0) & (i == 0))
    def _start_tables():
        for ref in (cell.d_key_table, cell.d_query_table):
            if ref is not None:
                ref[...] = jnp.zeros_like(ref)

    @pl.when(i == 0)
    def _start_keys():
        cell.key_sum[...] = jnp.zeros_like(cell.key_sum)
        cell.value_sum[...] = jnp.zeros_like(cell.value_sum)

    @pl.when(j == 0)
    def _start_queries():
        cell.query_sum[:, :, cell.of_tile] = jnp.zeros_like(cell.query_sum[:, :, cell.of_tile])

    attend = functools.partial(_attend, shape, cell)
    scoring.when_visited(blocks, visits, ranges, (item, i, j), attend)

    units = square_scoring.gradient_units(blocks)

    @pl.when(i == pl.num_programs(3) - 1)
    def _finish_keys():
        d_key, d_value = cell.key_sum[...] * units, cell.value_sum[...] / (1 - blocks.rate)
        d_key, d_value = d_key.astype(cell.sources.key.dtype), d_value.astype(cell.value.dtype)
        cell.d_key[0], cell.d_value[0] = d_key, d_value

    @pl.when(j == blocks.count - 1)
    def _finish_queries():
        d_query = cell.query_sum[:, :, cell.of_tile] * units
        cell.d_query[0, :, :, cell.of_tile] = d_query.astype(cell.sources.query.dtype)


def _weights(
    shape: scoring.PositionedShape, cell: _Cell, near: bool
) -> tuple[list[Array], list[Array]]:
    """(probabilities as dropped, gradients by score) of each head, [keys, queries]."""
    blocks, segments = shape.blocks, (cell.query_segments[0], cell.key_segments[0])
    weights: list[list[Array]] = [[] for _ in range(blocks.heads)]
    by_scores: list[list[Array]] = [[] for _ in range(blocks.heads)]
    for tile in range(blocks.block // TILE):
        scores, rows = scoring.scores(shape, cell.sources, cell.position, near, tile)
        seen = scoring.visible(blocks, *segments, cell.position, tile)
        kept = scoring.kept(blocks, cell.seeds, cell.item, cell.head, cell.position, tile)
        for e in range(blocks.heads):
            score = jnp.where(seen, scores[e] + (rows[e] - cell.lse[0, e]), tiles.UNSEEN)
            weight = dropped = jnp.exp2(score)
            value = cell.value[0, e, :, tile * TILE : (tile + 1) * TILE]
            by_weight = tiles.product(value, cell.gradient[0, e], (0, 0))
            if kept is not None:
                by_weight = jnp.where(kept[e], by_weight, 0.0)
                dropped = jnp.where(kept[e], weight, 0.0)
            weights[e].append(dropped)
            by_scores[e].append(weight * (by_weight - _delta(blocks, cell, e)))
    return (
        [jnp.concatenate(x, axis=0) for x in weights],
        [jnp.concatenate(x, axis=0) for x in by_scores],
    )


def _delta(blocks: Blocks, cell: _Cell, e: int) -> Float[Array, "1 Q"]:
    """The sum over keys of each query's probability times its gradient."""
    both = cell.output[0, e].astype(jnp.float32) * cell.gradient[0, e].astype(jnp.float32)
    return jnp.sum(both, axis=0, keepdims=True) * (1 - blocks.rate)


def _attend(shape: scoring.PositionedShape, cell: _Cell, near: bool) -> None:
    """Adds what a tile of queries and a block of keys give to every gradient."""
    blocks, sources = shape.blocks, cell.sources
    if near and blocks.c2p:
        scoring.fill_c2p(blocks, sources)
    probabilities, by_scores = _weights(shape, cell, near)
    dtype = sources.query.dtype
    for e, (weight, by_score) in enumerate(zip(probabilities, by_scores, strict=True)):
        gradient, by_score_low = cell.gradient[0, e], by_score.astype(dtype)
        query, key = sources.query[0, e], sources.key[0, e]
        cell.value_sum[e] += tiles.product(gradient, weight.astype(dtype), (1, 1))
        to_query = tiles.product(key, by_score_low, (1, 0))
        if near:
            cell.key_sum[e] += tiles.product(query, by_score_low, (1, 1))
        else:
            moved = square_scoring.far_query(blocks, query, sources.query_table, e, cell.offset)
            cell.key_sum[e] += tiles.product(moved, by_score_low, (1, 1))
            by_query = jnp.sum(by_score, axis=0, keepdims=True)
            if blocks.p2c:
                total = jnp.sum(to_query, axis=1, keepdims=True)
                square_scoring.add_far_row(blocks, cell.d_query_table, e, cell.offset, total)
            if blocks.c2p:
                of_query = query.astype(jnp.float32) * by_query
                total = jnp.sum(of_query, axis=1, keepdims=True)
                square_scoring.add_far_row(blocks, cell.d_key_table, e, -cell.offset, total)
                row = square_scoring.far_row(blocks, sources.key_table, e, -cell.offset)
                to_query += by_query * row
        cell.query_sum[e, :, cell.of_tile] += to_query
    if near:
        cell.by_score[...] = tiles.fold(by_scores, blocks)
        if blocks.c2p:
            _c2p_gradients(blocks, cell)
        if blocks.p2c:
            _p2c_gradients(blocks, cell)


def _c2p_gradients(blocks: Blocks, cell: _Cell) -> None:
    query, key_table = cell.sources.query, cell.sources.key_table
    shift = scoring.spots(blocks) - 1 - scoring.spot(blocks, cell.position.of_query, cell.j)
    moved = scoring.spread(cell.by_score[...], shift, blocks.table_width)
    for e in range(blocks.heads):
        by_row = tiles.unfold(moved, e, blocks).astype(query.dtype)
        to_query = tiles.product(key_table[e], by_row, (1, 0))
        cell.query_sum[e, :, cell.of_tile] += to_query
        cell.d_key_table[e] += tiles.product(query[0, e], by_row, (1, 1))


def _p2c_gradients(blocks: Blocks, cell: _Cell) -> None:
    live = cell.query_segments[0] > 0
    spot = jnp.where(live, scoring.spot(blocks, cell.position.of_query, cell.j), -1)
    _add_p2c(blocks, cell, spot)
    clipped = not blocks.single and scoring.clips(blocks, cell.position)

    @pl.when((cell.ranges[cell.item, cell.i, 2] > 0) | clipped)
    def _of_repeats():
        _join_others(blocks, cell, spot)
        _add_p2c(blocks, cell, spot)


def _add_p2c(blocks: Blocks, cell: _Cell, spot: Int[Array, "1 Q"]) -> None:
    """Adds what the last query at each spot gives."""
    key, query_table = cell.sources.key, cell.sources.query_table

    def add(span: Array | int) -> None:
        index = scoring.query_of(blocks, spot, span)
        for tile in range(blocks.block // TILE):
            keys = slice(tile * TILE, (tile + 1) * TILE)
            window = scoring.table_window(blocks, tile, span)
            moved = scoring.pick(cell.by_score[keys], index)
            for e in range(blocks.heads):
                by_row = tiles.unfold(moved, e, blocks).astype(key.dtype)
                row, of_key = query_table[e, :, window], key[0, e, :, keys]
                cell.key_sum[e, :, keys] += tiles.product(row, by_row, (1, 1))
                cell.d_query_table[e, :, window] += tiles.product(of_key, by_row, (1, 0))

    scoring.each_span(blocks, cell.position, add)


def _join_others(blocks: Blocks, cell: _Cell, spot: Int[Array, "1 Q"]) -> None:
    """Leaves to the last query at each spot the sum of what all others there have.

    Rare: positions to predict do not repeat, and padding's gradients are zero.
    """
    same = spot == jnp.broadcast_to(spot, (TILE, TILE)).T
    query, lane = (jax.lax.broadcasted_iota(jnp.int32, (TILE, TILE), axis) for axis in (0, 1))
    last = jnp.max(jnp.where(same, query, -1), axis=0, keepdims=True)
    others = same & (last == lane) & (query != lane)
    others = others.astype(jnp.float32).astype(cell.sources.query.dtype)
    for start in range(0, blocks.block, TILE):
        keys = slice(start, start + TILE)
        by_score = [
            tiles.unfold(cell.by_score[keys], e, blocks).astype(others.dtype)
            for e in range(blocks.heads)
        ]
        sums = [tiles.product(x, others, (1, 0)) for x in by_score]
        cell.by_score[keys] = tiles.fold(sums, blocks)
