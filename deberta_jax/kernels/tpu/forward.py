"""The forward kernel: online softmax over key blocks, one or two heads a cell."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from deberta_jax.kernels.tpu import scores as scoring
from deberta_jax.kernels.tpu import softmax, tiles
from deberta_jax.kernels.tpu.blocks import Blocks
from deberta_jax.kernels.tpu.operands import Operands
from deberta_jax.kernels.tpu.tiles import Ref

# Keys whose scores are held at once.
_KEYS = 256


def forward(
    blocks: Blocks, operands: Operands
) -> tuple[Float[Array, "B H D L"], Float[Array, "B H 1 L"]]:
    """(output in the type of the content, log2 of the sum of exponentials, float32)."""
    content = operands.content
    _, batch, heads, size, length = content.shape
    block, together = blocks.block, blocks.heads

    def at(part, index):
        shape = (None, 1, together, size, block)
        return pl.BlockSpec(shape, lambda h, b, i, j, *_: (part, b, h, 0, index(i, j)))

    def row(index):
        return pl.BlockSpec((1, 1, block), lambda h, b, i, j, *_: (b, 0, index(i, j)))

    table = pl.BlockSpec((together, size, blocks.table_width), lambda h, *_: (h, 0, 0))
    lse = pl.BlockSpec((1, together, 1, block), lambda h, b, i, j, *_: (b, h, 0, i))
    output = pl.BlockSpec((1, together, size, block), lambda h, b, i, j, *_: (b, h, 0, i))
    of_query, of_key = (lambda i, j: i), (lambda i, j: j)
    present = [t for t in operands.tables if t is not None]
    word = jnp.float32 if together == 1 else jnp.int32
    return pl.pallas_call(
        functools.partial(_kernel, blocks),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(heads // together, batch, blocks.count, blocks.count),
            in_specs=[
                at(0, of_query),
                at(1, of_key),
                at(2, of_key),
                row(of_query),
                row(of_key),
                *[table] * len(present),
            ],
            out_specs=[output, lse],
            scratch_shapes=[
                *softmax.scratch(together, size, block),
                *[pltpu.VMEM((block, block), word)] * blocks.c2p,
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(content.shape[1:], content.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        name="disentangled_attention_forward",
        interpret=blocks.interpret,
    )(
        operands.seeds, operands.visits.reshape(-1), content, content, content,
        operands.query_segments, operands.key_segments, *present,
    )  # fmt: skip


class _Cell(NamedTuple):
    """A grid cell: its references by name, and its coordinates."""

    query: Ref
    key: Ref
    value: Ref
    query_segments: Ref
    key_segments: Ref
    key_table: Ref
    query_table: Ref
    output: Ref
    lse: Ref
    sums: softmax.Sums
    c2p: Ref
    seeds: Ref
    head: Array
    item: Array
    i: Array
    j: Array


def _cell(blocks: Blocks, seeds_ref: Ref, refs: tuple[Ref, ...]) -> _Cell:
    content, rest = refs[:5], list(refs[5:])
    tables = [rest.pop(0) if on else None for on in (blocks.c2p, blocks.p2c)]
    output, lse, *scratch = rest
    c2p = scratch.pop() if blocks.c2p else None
    coordinates = [pl.program_id(axis) for axis in range(4)]
    sums = softmax.Sums._make(scratch)
    return _Cell._make([*content, *tables, output, lse, sums, c2p, seeds_ref, *coordinates])


def _kernel(blocks: Blocks, seeds_ref: Ref, visits_ref: Ref, *refs: Ref) -> None:
    cell = _cell(blocks, seeds_ref, refs)
    visits = tiles.InOrder(visits_ref, blocks.count, blocks.count)

    @pl.when(cell.j == 0)
    def _start():
        cell.sums.start()

    scoring.when_visited(
        blocks,
        visits[cell.item, cell.i, cell.j],
        cell.i - cell.j,
        functools.partial(_attend, blocks, cell),
    )

    @pl.when(cell.j == blocks.count - 1)
    def _finish():
        cell.sums.finish(blocks, cell.output, cell.lse)


def _attend(blocks: Blocks, cell: _Cell, near: bool) -> None:
    """Adds a block of keys, a few at a time."""
    if near and blocks.c2p:
        scoring.fill_c2p(blocks, cell, cell.i - cell.j)
    for start in range(0, blocks.block, min(_KEYS, blocks.block)):
        keys = slice(start, min(start + _KEYS, blocks.block))
        scores, rows = scoring.scores(blocks, cell, near, cell.i - cell.j, keys)
        seen = tiles.visible(
            blocks,
            cell.query_segments[0],
            cell.key_segments[0, :, keys],
            *_starts(blocks, cell, start),
        )
        kept: list[Array] = []
        if blocks.rate:
            kept = tiles.kept(
                blocks,
                tiles.Draw(cell.seeds, cell.item, cell.head * blocks.heads),
                *_starts(blocks, cell, start),
                (keys.stop - keys.start, blocks.block),
            )
        for e in range(blocks.heads):
            score = jnp.where(seen, scores[e], tiles.UNSEEN)
            cell.sums.add(e, score, rows[e], kept[e] if kept else None, cell.value[0, e, :, keys])


def _starts(blocks: Blocks, cell: _Cell, start: int) -> tuple[Array, Array]:
    """The first query, and the key at `start` of the block, in the sequence."""
    return cell.i * blocks.block, cell.j * blocks.block + start
