"""The backward kernel for queries at any positions: all five gradients in one pass.

Gradients of keys and values gather over query tiles, those of queries over key blocks, those of
the tables over everything but the head; all gather in VMEM, and each is written once.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.kernels.tpu import positioned_scores as scoring
from deberta_jax.kernels.tpu import scores as square_scoring
from deberta_jax.kernels.tpu import tiles
from deberta_jax.kernels.tpu.blocks import TILE


def backward(
    shape, seeds, visits, ranges, query, key, value, tables, query_segments, key_segments,
    positions, output, lse, gradient,
):  # fmt: skip
    """Gradients of (query, key, value, (c2p's table, p2c's table)), the tables' in float32.

    The arguments are `forward`'s, what it gave, and the gradient of its output, [B, H, D, P].
    Queries whose gradient is zero count as padding.
    """
    batch, heads, size, queries = query.shape
    blocks = shape.blocks
    block, together = blocks.block, blocks.heads
    of_queries = pl.BlockSpec((1, together, size, TILE), lambda h, b, j, i, *_: (b, h, 0, i))
    of_keys = pl.BlockSpec((1, together, size, block), lambda h, b, j, i, *_: (b, h, 0, j))
    query_row = pl.BlockSpec((1, 1, TILE), lambda h, b, j, i, *_: (b, 0, i))
    key_row = pl.BlockSpec((1, 1, block), lambda h, b, j, i, *_: (b, 0, j))
    table = pl.BlockSpec((together, size, blocks.table_width), lambda h, *_: (h, 0, 0))
    lse_row = pl.BlockSpec((1, together, 1, TILE), lambda h, b, j, i, *_: (b, h, 0, i))
    whole = pl.BlockSpec((1, together, size, queries), lambda h, b, *_: (b, h, 0, 0))
    wide = scoring.present(tables[:2])
    word = jnp.int32 if together == 2 else jnp.float32
    gathered = pltpu.VMEM((together, size, block), jnp.float32)
    results = pl.pallas_call(
        functools.partial(_kernel, shape),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(heads // together, batch, blocks.count, queries // TILE),
            in_specs=[
                *[of_queries, of_keys, of_keys, query_row, key_row, query_row],
                *[of_queries, lse_row, of_queries],
                *scoring.table_specs(shape, tables),
            ],
            out_specs=[whole, of_keys, of_keys, *[table] * len(wide)],
            scratch_shapes=[
                *[pltpu.VMEM((together, size, queries), jnp.float32), gathered, gathered],
                *[pltpu.VMEM((block, TILE), word)] * bool(wide),
                *[pltpu.VMEM((blocks.table_width, TILE), word)] * blocks.c2p,
            ],
        ),
        out_shape=[
            *[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)],
            *[jax.ShapeDtypeStruct(t.shape, jnp.float32) for t in wide],
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary")
        ),
        name="positioned_attention_backward",
        interpret=blocks.interpret,
    )(
        seeds, visits.reshape(-1), ranges.reshape(-1), query, key, value,
        query_segments, key_segments, positions,
        output, lse, gradient, *scoring.present(tables),
    )  # fmt: skip
    d_query, d_key, d_value, *d_tables = results
    d_tables = [d_table * square_scoring.gradient_units(blocks) for d_table in d_tables]
    d_tables = tuple(None if t is None else d_tables.pop(0) for t in tables[:2])
    return d_query, d_key, d_value, d_tables


def _kernel(shape, seeds_ref, visits_ref, ranges_ref, query_ref, key_ref, value_ref, *refs):
    blocks = shape.blocks
    query_segments_ref, key_segments_ref, positions_ref, output_ref, lse_ref, *refs = refs
    gradient_ref, *refs = refs
    tables, refs = scoring.split_tables(blocks, refs)
    key_table_ref, query_table_ref = tables[:2]
    d_query_ref, d_key_ref, d_value_ref, *refs = refs
    d_key_table_ref = refs.pop(0) if blocks.c2p else None
    d_query_table_ref = refs.pop(0) if blocks.p2c else None
    query_sum_ref, key_sum_ref, value_sum_ref, *refs = refs
    by_score_ref = refs.pop(0) if blocks.c2p or blocks.p2c else None
    sources = scoring.Refs(query_ref, key_ref, *tables, refs.pop() if blocks.c2p else None)
    visits_ref, ranges_ref = scoring.in_order(blocks, visits_ref, ranges_ref, pl.num_programs(3))
    head, item, j, i = (pl.program_id(axis) for axis in range(4))
    of_tile = pl.ds(pl.multiple_of(i * TILE, TILE), TILE)
    position = scoring.TilePositions(
        positions_ref[0], ranges_ref[item, i, 0], ranges_ref[item, i, 1], j
    )
    offset = position.first - j * blocks.block

    @pl.when((item == 0) & (j == 0) & (i == 0))
    def _start_tables():
        for ref in (d_key_table_ref, d_query_table_ref):
            if ref is not None:
                ref[...] = jnp.zeros_like(ref)

    @pl.when(i == 0)
    def _start_keys():
        key_sum_ref[...] = jnp.zeros_like(key_sum_ref)
        value_sum_ref[...] = jnp.zeros_like(value_sum_ref)

    @pl.when(j == 0)
    def _start_queries():
        query_sum_ref[:, :, of_tile] = jnp.zeros_like(query_sum_ref[:, :, of_tile])

    def weights(near):
        """(probabilities as dropped of each head, gradients by score), [keys, queries]."""
        segments = query_segments_ref[0], key_segments_ref[0]
        weights, by_scores = ([[] for _ in range(blocks.heads)] for _ in range(2))
        for tile in range(blocks.block // TILE):
            scores, rows = scoring.scores(shape, sources, position, near, tile)
            seen = scoring.visible(blocks, *segments, position, tile)
            kept = scoring.kept(blocks, seeds_ref, item, head, position, tile)
            for e in range(blocks.heads):
                score = jnp.where(seen, scores[e] + (rows[e] - lse_ref[0, e]), tiles.UNSEEN)
                weight = dropped = jnp.exp2(score)
                value = value_ref[0, e, :, tile * TILE : (tile + 1) * TILE]
                by_weight = tiles.product(value, gradient_ref[0, e], (0, 0))
                if kept is not None:
                    by_weight = jnp.where(kept[e], by_weight, 0.0)
                    dropped = jnp.where(kept[e], weight, 0.0)
                weights[e].append(dropped)
                by_scores[e].append(weight * (by_weight - delta(e)))
        return [[jnp.concatenate(x, axis=0) for x in kind] for kind in (weights, by_scores)]

    def delta(e):
        both = output_ref[0, e].astype(jnp.float32) * gradient_ref[0, e].astype(jnp.float32)
        return jnp.sum(both, axis=0, keepdims=True) * (1 - blocks.rate)

    def attend(near):
        if near and blocks.c2p:
            scoring.fill_c2p(blocks, sources)
        probabilities, by_scores = weights(near)
        dtype = query_ref.dtype
        for e, (weight, by_score) in enumerate(zip(probabilities, by_scores, strict=True)):
            gradient, by_score_low = gradient_ref[0, e], by_score.astype(dtype)
            query, key = query_ref[0, e], key_ref[0, e]
            value_sum_ref[e] += tiles.product(gradient, weight.astype(dtype), (1, 1))
            to_query = tiles.product(key, by_score_low, (1, 0))
            if near:
                key_sum_ref[e] += tiles.product(query, by_score_low, (1, 1))
            else:
                moved = square_scoring.far_query(blocks, query, query_table_ref, e, offset)
                key_sum_ref[e] += tiles.product(moved, by_score_low, (1, 1))
                by_query = jnp.sum(by_score, axis=0, keepdims=True)
                if blocks.p2c:
                    total = jnp.sum(to_query, axis=1, keepdims=True)
                    square_scoring.add_far_row(blocks, d_query_table_ref, e, offset, total)
                if blocks.c2p:
                    of_query = query.astype(jnp.float32) * by_query
                    total = jnp.sum(of_query, axis=1, keepdims=True)
                    square_scoring.add_far_row(blocks, d_key_table_ref, e, -offset, total)
                    row = square_scoring.far_row(blocks, key_table_ref, e, -offset)
                    to_query += by_query * row
            query_sum_ref[e, :, of_tile] += to_query
        if near:
            by_score_ref[...] = tiles.fold(by_scores, blocks)
            if blocks.c2p:
                c2p_gradients()
            if blocks.p2c:
                p2c_gradients()

    def c2p_gradients():
        shift = scoring.spots(blocks) - 1 - scoring.spot(blocks, position.of_query, j)
        moved = scoring.spread(by_score_ref[...], shift, blocks.table_width)
        for e in range(blocks.heads):
            by_row = tiles.unfold(moved, e, blocks).astype(query_ref.dtype)
            to_query = tiles.product(key_table_ref[e], by_row, (1, 0))
            query_sum_ref[e, :, of_tile] += to_query
            d_key_table_ref[e] += tiles.product(query_ref[0, e], by_row, (1, 1))

    def p2c_gradients():
        live = query_segments_ref[0] > 0
        spot = jnp.where(live, scoring.spot(blocks, position.of_query, j), -1)
        add_p2c(spot)
        clipped = not blocks.single and scoring.clips(blocks, position)

        @pl.when((ranges_ref[item, i, 2] > 0) | clipped)
        def _of_repeats():
            join_others(spot)
            add_p2c(spot)

    def add_p2c(spot):
        """Adds what the last query at each spot gives."""

        def add(span):
            index = scoring.query_of(blocks, spot, span)
            for tile in range(blocks.block // TILE):
                keys = slice(tile * TILE, (tile + 1) * TILE)
                window = scoring.table_window(blocks, tile, span)
                moved = scoring.pick(by_score_ref[keys], index)
                for e in range(blocks.heads):
                    by_row = tiles.unfold(moved, e, blocks).astype(key_ref.dtype)
                    row, key = query_table_ref[e, :, window], key_ref[0, e, :, keys]
                    key_sum_ref[e, :, keys] += tiles.product(row, by_row, (1, 1))
                    d_query_table_ref[e, :, window] += tiles.product(key, by_row, (1, 0))

        scoring.each_span(blocks, position, add)

    def join_others(spot):
        """Leaves to the last query at each spot the sum of what all others there have.

        Rare: positions to predict do not repeat, and padding's gradients are zero.
        """
        same = spot == jnp.broadcast_to(spot, (TILE, TILE)).T
        query, lane = (jax.lax.broadcasted_iota(jnp.int32, (TILE, TILE), axis) for axis in (0, 1))
        last = jnp.max(jnp.where(same, query, -1), axis=0, keepdims=True)
        others = same & (last == lane) & (query != lane)
        others = others.astype(jnp.float32).astype(query_ref.dtype)
        for start in range(0, blocks.block, TILE):
            keys = slice(start, start + TILE)
            by_score = [
                tiles.unfold(by_score_ref[keys], e, blocks).astype(others.dtype)
                for e in range(blocks.heads)
            ]
            sums = [tiles.product(x, others, (1, 0)) for x in by_score]
            by_score_ref[keys] = tiles.fold(sums, blocks)

    scoring.when_visited(blocks, visits_ref, ranges_ref, item, i, j, attend)

    units = square_scoring.gradient_units(blocks)

    @pl.when(i == pl.num_programs(3) - 1)
    def _finish_keys():
        d_key, d_value = key_sum_ref[...] * units, value_sum_ref[...] / (1 - blocks.rate)
        d_key_ref[0], d_value_ref[0] = d_key.astype(key_ref.dtype), d_value.astype(value_ref.dtype)

    @pl.when(j == blocks.count - 1)
    def _finish_queries():
        d_query = query_sum_ref[:, :, of_tile] * units
        d_query_ref[0, :, :, of_tile] = d_query.astype(query_ref.dtype)
