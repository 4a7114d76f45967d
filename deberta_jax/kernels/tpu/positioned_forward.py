"""The forward kernel for queries at any positions: online softmax over key blocks."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from deberta_jax.kernels.tpu import positioned_scores as scoring
from deberta_jax.kernels.tpu import softmax, tiles
from deberta_jax.kernels.tpu.blocks import TILE, Blocks
from deberta_jax.kernels.tpu.operands import PositionedOperands
from deberta_jax.kernels.tpu.tiles import InOrder, Ref


def forward(
    shape: scoring.PositionedShape, operands: PositionedOperands
) -> tuple[Float[Array, "B H D P"], Float[Array, "B H 1 P"]]:
    """(output in the type of the values, log2 of the sum of exponentials, float32)."""
    query, value = operands.query, operands.value
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
                *scoring.table_specs(shape, operands.tables),
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
        operands.seeds, operands.visits.reshape(-1), operands.ranges.reshape(-1),
        query, operands.key, value,
        operands.query_segments, operands.key_segments, operands.positions,
        *scoring.present(operands.tables),
    )  # fmt: skip


class _Cell(NamedTuple):
    """A grid cell: its references by name, and its coordinates."""

    sources: scoring.Refs
    value: Ref
    query_segments: Ref
    key_segments: Ref
    positions: Ref
    output: Ref
    lse: Ref
    sums: softmax.Sums
    seeds: Ref
    ranges: InOrder
    head: Array
    item: Array
    i: Array
    j: Array


def _kernel(
    shape: scoring.PositionedShape, seeds_ref: Ref, visits_ref: Ref, ranges_ref: Ref, *refs: Ref
) -> None:
    blocks = shape.blocks
    visits, ranges = scoring.in_order(blocks, visits_ref, ranges_ref, pl.num_programs(2))
    cell = _cell(blocks, seeds_ref, ranges, refs)

    @pl.when(cell.j == 0)
    def _start():
        cell.sums.start()
        if blocks.c2p:
            scoring.fill_c2p(blocks, cell.sources)

    attend = functools.partial(_attend, shape, cell)
    scoring.when_visited(blocks, visits, ranges, (cell.item, cell.i, cell.j), attend)

    @pl.when(cell.j == blocks.count - 1)
    def _finish():
        cell.sums.finish(blocks, cell.output, cell.lse)


def _cell(blocks: Blocks, seeds_ref: Ref, ranges: InOrder, refs: tuple[Ref, ...]) -> _Cell:
    query, key, *inputs = refs[:6]
    tables, rest = scoring.split_tables(blocks, refs[6:])
    output, lse, *scratch = rest
    c2p = scratch.pop() if blocks.c2p else None
    sources = scoring.Refs._make([query, key, *tables, c2p])
    coordinates = [pl.program_id(axis) for axis in range(4)]
    sums = softmax.Sums._make(scratch)
    return _Cell._make([sources, *inputs, output, lse, sums, seeds_ref, ranges, *coordinates])


def _attend(shape: scoring.PositionedShape, cell: _Cell, near: bool) -> None:
    """Adds a block of keys."""
    blocks, (item, i) = shape.blocks, (cell.item, cell.i)
    position = scoring.TilePositions(
        cell.positions[0], cell.ranges[item, i, 0], cell.ranges[item, i, 1], cell.j
    )
    segments = cell.query_segments[0], cell.key_segments[0]
    masks, parts = [], []
    for tile in range(blocks.block // TILE):
        scores, rows = scoring.scores(shape, cell.sources, position, near, tile)
        seen = scoring.visible(blocks, *segments, position, tile)
        parts.append([jnp.where(seen, score, tiles.UNSEEN) for score in scores])
        mask = scoring.kept(blocks, cell.seeds, item, cell.head, position, tile)
        if mask is not None:
            masks.append(mask)
    for e in range(blocks.heads):
        score = jnp.concatenate([of_heads[e] for of_heads in parts], axis=0)
        kept = None
        if masks:
            kept = jnp.concatenate([of_heads[e] for of_heads in masks], axis=0)
        cell.sums.add(e, score, rows[e], kept, cell.value[0, e])
