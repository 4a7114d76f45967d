"""The backward kernel: recomputes the probabilities, and gives all five gradients in one pass.

Gradients of keys and values gather over query blocks, those of queries over key blocks, those of
the tables over everything but the head; all gather in VMEM, and each is written once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from deberta_jax.kernels.tpu import scores as scoring
from deberta_jax.kernels.tpu import tiles
from deberta_jax.kernels.tpu.blocks import DEFAULT_VMEM, TILE, Blocks
from deberta_jax.kernels.tpu.operands import Operands, Tables
from deberta_jax.kernels.tpu.tiles import Ref, Window


def backward(
    blocks: Blocks,
    operands: Operands,
    output: Float[Array, "B H D L"],
    lse: Float[Array, "B H 1 L"],
    gradient: Float[Array, "B H D L"],
) -> tuple[Float[Array, "3 B H D L"], Tables, Float[Array, "3 H D"]]:
    """Gradients of (content, (c2p's table, p2c's table), biases).

    The queries' are those of the queries before they were scaled. Those of the tables and of the
    content's biases (sums over all tokens) are float32.

    Args:
        blocks: the static shape.
        operands: those of `forward`.
        output: what it returned.
        lse: likewise.
        gradient: of its output.
    """
    content = operands.content
    present = [t for t in operands.tables if t is not None]
    results = pl.pallas_call(
        functools.partial(_kernel, blocks),
        grid_spec=_grid_spec(blocks, content.shape, len(present)),
        out_shape=[
            jax.ShapeDtypeStruct(content.shape, content.dtype),
            jax.ShapeDtypeStruct((3, *content.shape[2:4], TILE), jnp.float32),
            *[jax.ShapeDtypeStruct(t.shape, jnp.float32) for t in present],
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"),
            vmem_limit_bytes=max(
                DEFAULT_VMEM, blocks.backward_vmem(content.shape[3], content.dtype.itemsize)
            ),
        ),
        name="disentangled_attention_backward",
        interpret=blocks.interpret,
    )(
        operands.seeds, operands.visits.reshape(-1), content, content, content,
        operands.query_segments, operands.key_segments, output, lse, gradient, *present,
    )  # fmt: skip
    d_content, d_biases, *d_present = results
    d_present = [d_table * scoring.gradient_units(blocks) for d_table in d_present]
    d_key_table, d_query_table = (None if t is None else d_present.pop(0) for t in operands.tables)
    return d_content, (d_key_table, d_query_table), jnp.sum(d_biases, axis=-1)


def _grid_spec(blocks: Blocks, shape: tuple[int, ...], tables: int) -> pltpu.PrefetchScalarGridSpec:
    """Cells by heads, item, key block and query block; `shape` is the content's."""
    _, batch, heads, size, length = shape
    block, together = blocks.block, blocks.heads

    def at(part, index):
        shape = (None, 1, together, size, block)
        return pl.BlockSpec(shape, lambda h, b, j, i, *_: (part, b, h, 0, index(i, j)))

    def row(index):
        return pl.BlockSpec((1, 1, block), lambda h, b, j, i, *_: (b, 0, index(i, j)))

    table = pl.BlockSpec((together, size, blocks.table_width), lambda h, *_: (h, 0, 0))
    lse = pl.BlockSpec((1, together, 1, block), lambda h, b, j, i, *_: (b, h, 0, i))
    whole = pl.BlockSpec((3, 1, together, size, length), lambda h, b, *_: (0, b, h, 0, 0))
    output = pl.BlockSpec((1, together, size, block), lambda h, b, j, i, *_: (b, h, 0, i))
    biases = pl.BlockSpec((3, together, size, TILE), lambda h, *_: (0, h, 0, 0))
    of_query, of_key = (lambda i, j: i), (lambda i, j: j)
    word = jnp.int32 if together == 2 else jnp.float32
    gathered = pltpu.VMEM((together, size, block), jnp.float32)
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(heads // together, batch, blocks.count, blocks.count),
        in_specs=[
            *[at(0, of_query), at(1, of_key), at(2, of_key), row(of_query), row(of_key)],
            *[output, lse, output],
            *[table] * tables,
        ],
        out_specs=[whole, biases, *[table] * tables],
        scratch_shapes=[
            *[pltpu.VMEM((together, size, length), jnp.float32), gathered, gathered],
            *[pltpu.VMEM((block, block), word)] * (2 if blocks.c2p else 0),
        ],
    )


class _Cell(NamedTuple):
    """A grid cell: its references by name, and its coordinates."""

    query: Ref
    key: Ref
    value: Ref
    query_segments: Ref
    key_segments: Ref
    output: Ref
    lse: Ref
    gradient: Ref
    key_table: Ref
    query_table: Ref
    d_content: Ref
    d_biases: Ref
    d_key_table: Ref
    d_query_table: Ref
    query_sum: Ref
    key_sum: Ref
    value_sum: Ref
    c2p: Ref
    transposed: Ref
    seeds: Ref
    head: Array
    item: Array
    j: Array
    i: Array
    of_i: Window  # the tokens of query block i


def _cell(blocks: Blocks, seeds_ref: Ref, refs: tuple[Ref, ...]) -> _Cell:
    rest = list(refs)
    content = [rest.pop(0) for _ in range(8)]
    tables = [rest.pop(0) if on else None for on in (blocks.c2p, blocks.p2c)]
    outputs = [rest.pop(0) for _ in range(2)]
    outputs += [rest.pop(0) if on else None for on in (blocks.c2p, blocks.p2c)]
    scratch = rest if blocks.c2p else [*rest, None, None]
    coordinates = [pl.program_id(axis) for axis in range(4)]
    of_i = _of_block(blocks, coordinates[-1])
    return _Cell._make([*content, *tables, *outputs, *scratch, seeds_ref, *coordinates, of_i])


def _of_block(blocks: Blocks, block: Array) -> Window:
    return pl.ds(pl.multiple_of(block * blocks.block, TILE), blocks.block)


def _kernel(blocks: Blocks, seeds_ref: Ref, visits_ref: Ref, *refs: Ref) -> None:
    cell = _cell(blocks, seeds_ref, refs)
    visits = tiles.InOrder(visits_ref, blocks.count, blocks.count)
    item, j, i = cell.item, cell.j, cell.i

    @pl.when((item == 0) & (j == 0) & (i == 0))
    def _start_head():
        for ref in (cell.d_biases, cell.d_key_table, cell.d_query_table):
            if ref is not None:
                ref[...] = jnp.zeros_like(ref)

    @pl.when(i == 0)
    def _start_keys():
        cell.key_sum[...] = jnp.zeros_like(cell.key_sum)
        cell.value_sum[...] = jnp.zeros_like(cell.value_sum)

    @pl.when(j == 0)
    def _start_queries():
        cell.query_sum[:, :, cell.of_i] = jnp.zeros_like(cell.key_sum)

    scoring.when_visited(
        blocks, visits[item, i, j], i - j, functools.partial(_attend, blocks, cell)
    )

    units = scoring.gradient_units(blocks)

    def finish(part: int, block: Array, gradient: Array) -> None:
        cell.d_content[part, 0, :, :, _of_block(blocks, block)] = gradient.astype(cell.query.dtype)
        cell.d_biases[part] += _fold_lanes(gradient)

    @pl.when(i == blocks.count - 1)
    def _finish_keys():
        finish(1, j, cell.key_sum[...] * units)
        finish(2, j, cell.value_sum[...] / (1 - blocks.rate))

    @pl.when(j == blocks.count - 1)
    def _finish_queries():
        finish(0, i, cell.query_sum[:, :, cell.of_i] * (units * np.float32(blocks.scale)))


def _weights(blocks: Blocks, cell: _Cell, near: bool) -> list[tuple[Array, Array]]:
    """(probabilities as dropped, gradients by score) of each head, [keys, queries]."""
    everything = slice(0, blocks.block)
    scores, rows = scoring.scores(blocks, cell, near, cell.i - cell.j, everything)
    starts = (cell.i * blocks.block, cell.j * blocks.block)
    seen = tiles.visible(blocks, cell.query_segments[0], cell.key_segments[0], *starts)
    kept: list[Array] = []
    if blocks.rate:
        draw = tiles.Draw(cell.seeds, cell.item, cell.head * blocks.heads)
        kept = tiles.kept(blocks, draw, *starts, (blocks.block, blocks.block))
    result = []
    for e in range(blocks.heads):
        score = jnp.where(seen, scores[e] + (rows[e] - cell.lse[0, e]), tiles.UNSEEN)
        weight = jnp.exp2(score)
        gradient = cell.gradient[0, e]
        by_weight = tiles.product(cell.value[0, e], gradient, (0, 0))
        dropped = weight
        if kept:
            by_weight = jnp.where(kept[e], by_weight, 0.0)
            dropped = jnp.where(kept[e], weight, 0.0)
        both = cell.output[0, e].astype(jnp.float32) * gradient.astype(jnp.float32)
        delta = jnp.sum(both, axis=0, keepdims=True) * (1 - blocks.rate)
        result.append((dropped, weight * (by_weight - delta)))
    return result


def _attend(blocks: Blocks, cell: _Cell, near: bool) -> None:
    """Adds what a pair of blocks gives to every gradient."""
    if near and blocks.c2p:
        scoring.fill_c2p(blocks, cell, cell.i - cell.j)
    by_head = _weights(blocks, cell, near)
    dtype = cell.query.dtype
    for e, (weight, by_score) in enumerate(by_head):
        gradient, by_score_low = cell.gradient[0, e], by_score.astype(dtype)
        query, key = cell.query[0, e], cell.key[0, e]
        cell.value_sum[e] += tiles.product(gradient, weight.astype(dtype), (1, 1))
        to_query = tiles.product(key, by_score_low, (1, 0))
        if near:
            cell.key_sum[e] += tiles.product(query, by_score_low, (1, 1))
        else:
            moved = scoring.far_query(blocks, query, cell.query_table, e, cell.i - cell.j)
            cell.key_sum[e] += tiles.product(moved, by_score_low, (1, 1))
            by_query = jnp.sum(by_score, axis=0, keepdims=True)
            if blocks.p2c:
                total = jnp.sum(to_query, axis=1, keepdims=True)
                scoring.add_far_row(blocks, cell.d_query_table, e, cell.i - cell.j, total)
            if blocks.c2p:
                of_query = query.astype(jnp.float32) * by_query
                total = jnp.sum(of_query, axis=1, keepdims=True)
                scoring.add_far_row(blocks, cell.d_key_table, e, cell.j - cell.i, total)
                to_query += by_query * scoring.far_row(blocks, cell.key_table, e, cell.j - cell.i)
        cell.query_sum[e, :, cell.of_i] += to_query
    if near:
        folded = tiles.fold([by_score for _, by_score in by_head], blocks)
        if blocks.p2c:
            _p2c_gradients(blocks, cell, folded)
        if blocks.c2p:
            cell.transposed[...] = folded.T
            _c2p_gradients(blocks, cell)


def _p2c_gradients(blocks: Blocks, cell: _Cell, folded: Array) -> None:
    for tile in range(blocks.block // TILE):
        keys = slice(tile * TILE, (tile + 1) * TILE)
        window = scoring.table_window(blocks, cell.i - cell.j, tile)
        moved = tiles.unskew(folded[keys])
        for e in range(blocks.heads):
            by_row = tiles.unfold(moved, e, blocks).astype(cell.key.dtype)
            row, key = cell.query_table[e, :, window], cell.key[0, e, :, keys]
            cell.key_sum[e, :, keys] += tiles.product(row, by_row, (1, 1))
            cell.d_query_table[e, :, window] += tiles.product(key, by_row, (1, 0))


def _c2p_gradients(blocks: Blocks, cell: _Cell) -> None:
    for tile in range(blocks.block // TILE):
        queries = slice(tile * TILE, (tile + 1) * TILE)
        of_tile = pl.ds(pl.multiple_of(cell.i * blocks.block + tile * TILE, TILE), TILE)
        window = scoring.table_window(blocks, cell.j - cell.i, tile)
        moved = tiles.unskew(cell.transposed[queries])
        for e in range(blocks.heads):
            by_row = tiles.unfold(moved, e, blocks).astype(cell.query.dtype)
            row, query = cell.key_table[e, :, window], cell.query[0, e, :, queries]
            cell.query_sum[e, :, of_tile] += tiles.product(row, by_row, (1, 1))
            cell.d_key_table[e, :, window] += tiles.product(query, by_row, (1, 0))


def _fold_lanes(x_GDT):
    """Sums a block's tokens to TILE of them; the rest of the sum is a matter for XLA."""
    return sum(x_GDT[..., start : start + TILE] for start in range(0, x_GDT.shape[-1], TILE))
