"""The forward kernel for queries at any positions: online softmax over key blocks."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.kernels.tpu import positioned_scores as scoring
from deberta_jax.kernels.tpu import softmax, tiles
from deberta_jax.kernels.tpu.blocks import TILE


def forward(
    shape, seeds, visits, ranges, query, key, value, tables, query_segments, key_segments, positions
):
    """(output [B, H, D, P], log2-sum-exp2 [B, H, 1, P], float32).

    Scores are in bits: the scale and log2(e) are already in `query` and in p2c's table.

    Args:
        shape: the static shape.
        seeds: int32 [4] of the dropout: two words of the key, first item, first head.
        visits: int32 [B, I, J]: whether query tile i may see anything of key block j.
        ranges: int32 [B, I, 3]: first and last position of a tile's queries that see anything, and
            whether any repeats.
        query: [B, H, D, P].
        key, value: [B, H, D, L].
        tables: see `positioned_scores.Refs`: key_table to row_of_column; None where a
            term is off.
        query_segments, key_segments: int32 [B, 1, P] and [B, 1, L].
        positions: int32 [B, 1, P].
    """
    batch, heads, size, queries = query.shape
    blocks = shape.blocks
    block, together = blocks.block, blocks.heads
    of_queries = pl.BlockSpec((1, together, size, TILE), lambda h, b, i, j, *_: (b, h, 0, i))
    of_keys = pl.BlockSpec((1, together, size, block), lambda h, b, i, j, *_: (b, h, 0, j))
    query_row = pl.BlockSpec((1, 1, TILE), lambda h, b, i, j, *_: (b, 0, i))
    key_row = pl.BlockSpec((1, 1, block), lambda h, b, i, j, *_: (b, 0, j))
    lse = pl.BlockSpec((1, together, 1, TILE), lambda h, b, i, j, *_: (b, h, 0, i))
    word = jnp.int32 if together == 2 else jnp.float32
    return pl.pallas_call(
        functools.partial(_kernel, shape),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(heads // together, batch, queries // TILE, blocks.count),
            in_specs=[
                *[of_queries, of_keys, of_keys],
                *[query_row, key_row, query_row],
                *scoring.table_specs(shape, tables),
            ],
            out_specs=[of_queries, lse],
            scratch_shapes=[
                *softmax.scratch(together, size, TILE),
                *[pltpu.VMEM((blocks.table_width, TILE), word)] * blocks.c2p,
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, value.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, queries), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        name="positioned_attention_forward",
        interpret=blocks.interpret,
    )(
        seeds, visits.reshape(-1), ranges.reshape(-1), query, key, value,
        query_segments, key_segments, positions,
        *scoring.present(tables),
    )  # fmt: skip


def _kernel(shape, seeds_ref, visits_ref, ranges_ref, query_ref, key_ref, value_ref, *refs):
    blocks = shape.blocks
    query_segments_ref, key_segments_ref, positions_ref, *refs = refs
    tables, refs = scoring.split_tables(blocks, refs)
    output_ref, lse_ref, *refs = refs
    sums, refs = softmax.Sums(*refs[:3]), refs[3:]
    sources = scoring.Refs(query_ref, key_ref, *tables, refs.pop() if blocks.c2p else None)
    visits_ref, ranges_ref = scoring.in_order(blocks, visits_ref, ranges_ref, pl.num_programs(2))
    head, item, i, j = (pl.program_id(axis) for axis in range(4))

    @pl.when(j == 0)
    def _start():
        sums.start()
        if blocks.c2p:
            scoring.fill_c2p(blocks, sources)

    def attend(near):
        position = scoring.TilePositions(
            positions_ref[0], ranges_ref[item, i, 0], ranges_ref[item, i, 1], j
        )
        segments = query_segments_ref[0], key_segments_ref[0]
        masks, parts = [], []
        for tile in range(blocks.block // TILE):
            scores, rows = scoring.scores(shape, sources, position, near, tile)
            seen = scoring.visible(blocks, *segments, position, tile)
            parts.append([jnp.where(seen, score, tiles.UNSEEN) for score in scores])
            masks.append(scoring.kept(blocks, seeds_ref, item, head, position, tile))
        for e in range(blocks.heads):
            score = jnp.concatenate([of_heads[e] for of_heads in parts], axis=0)
            kept = None
            if blocks.rate:
                kept = jnp.concatenate([of_heads[e] for of_heads in masks], axis=0)
            sums.add(e, score, rows[e], kept, value_ref[0, e])

    scoring.when_visited(blocks, visits_ref, ranges_ref, item, i, j, attend)

    @pl.when(j == blocks.count - 1)
    def _finish():
        sums.finish(blocks, output_ref, lse_ref)
