"""The backward kernel: recomputes the probabilities, and gives all five gradients in one pass.

Gradients of keys and values gather over query blocks, those of queries over key blocks, those of
the tables over everything but the head; all gather in VMEM, and each is written once.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.kernels.tpu import scores as scoring
from deberta_jax.kernels.tpu import tiles
from deberta_jax.kernels.tpu.blocks import DEFAULT_VMEM, TILE


def backward(
    blocks, seeds, visits, content, tables, query_segments, key_segments, output, lse, gradient,
):  # fmt: skip
    """Gradients of (content, (c2p's table, p2c's table), biases).

    The queries' are those of the queries before they were scaled. Those of the tables and of the
    content's biases [3, H, D] (sums over all tokens) are float32.

    The arguments are `forward`'s, what it gave, and the gradient of its output, [B, H, D, L].
    """
    _, batch, heads, size, length = content.shape
    block, together = blocks.block, blocks.heads

    def at(part, index):
        shape = (None, 1, together, size, block)
        return pl.BlockSpec(shape, lambda h, b, j, i, *_: (part, b, h, 0, index(i, j)))

    def row(index):
        return pl.BlockSpec((1, 1, block), lambda h, b, j, i, *_: (b, 0, index(i, j)))

    table = pl.BlockSpec((together, size, blocks.table_width), lambda h, *_: (h, 0, 0))
    lse_row = pl.BlockSpec((1, together, 1, block), lambda h, b, j, i, *_: (b, h, 0, i))
    whole = pl.BlockSpec((3, 1, together, size, length), lambda h, b, *_: (0, b, h, 0, 0))
    output_block = pl.BlockSpec((1, together, size, block), lambda h, b, j, i, *_: (b, h, 0, i))
    biases = pl.BlockSpec((3, together, size, TILE), lambda h, *_: (0, h, 0, 0))
    of_query, of_key = (lambda i, j: i), (lambda i, j: j)
    present = [t for t in tables if t is not None]
    word = jnp.int32 if together == 2 else jnp.float32
    gathered = pltpu.VMEM((together, size, block), jnp.float32)
    results = pl.pallas_call(
        functools.partial(_kernel, blocks),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(heads // together, batch, blocks.count, blocks.count),
            in_specs=[
                *[at(0, of_query), at(1, of_key), at(2, of_key), row(of_query), row(of_key)],
                *[output_block, lse_row, output_block],
                *[table] * len(present),
            ],
            out_specs=[whole, biases, *[table] * len(present)],
            scratch_shapes=[
                *[pltpu.VMEM((together, size, length), jnp.float32), gathered, gathered],
                *[pltpu.VMEM((block, block), word)] * (2 if blocks.c2p else 0),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(content.shape, content.dtype),
            jax.ShapeDtypeStruct((3, heads, size, TILE), jnp.float32),
            *[jax.ShapeDtypeStruct(t.shape, jnp.float32) for t in present],
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"),
            vmem_limit_bytes=max(
                DEFAULT_VMEM, blocks.backward_vmem(size, content.dtype.itemsize)
            ),
        ),
        name="disentangled_attention_backward",
        interpret=blocks.interpret,
    )(
        seeds, visits.reshape(-1), content, content, content, query_segments, key_segments,
        output, lse, gradient,
        *present,
    )  # fmt: skip
    d_content, d_biases, *d_tables = results
    d_tables = [d_table * scoring.gradient_units(blocks) for d_table in d_tables]
    d_tables = tuple(None if t is None else d_tables.pop(0) for t in tables)
    return d_content, d_tables, jnp.sum(d_biases, axis=-1)


class _Cell(NamedTuple):
    """A grid cell: its references by name, None where a term is off, and its coordinates."""

    query: Any
    key: Any
    value: Any
    query_segments: Any
    key_segments: Any
    output: Any
    lse: Any
    gradient: Any
    key_table: Any
    query_table: Any
    d_content: Any
    d_biases: Any
    d_key_table: Any
    d_query_table: Any
    query_sum: Any
    key_sum: Any
    value_sum: Any
    c2p: Any
    transposed: Any
    seeds: Any
    head: Any
    item: Any
    j: Any
    i: Any
    of_i: Any  # the tokens of query block i


def _cell(blocks, seeds_ref, refs) -> _Cell:
    content, refs = refs[:8], list(refs[8:])
    tables = [refs.pop(0) if on else None for on in (blocks.c2p, blocks.p2c)]
    outputs = [refs.pop(0) for _ in range(2)]
    outputs += [refs.pop(0) if on else None for on in (blocks.c2p, blocks.p2c)]
    sums, scratch = refs[:3], refs[3:] or (None, None)
    coordinates = [pl.program_id(axis) for axis in range(4)]
    of_i = _of_block(blocks, coordinates[-1])
    return _Cell(*content, *tables, *outputs, *sums, *scratch, seeds_ref, *coordinates, of_i)


def _of_block(blocks, block):
    return pl.ds(pl.multiple_of(block * blocks.block, TILE), blocks.block)


def _kernel(blocks, seeds_ref, visits_ref, *refs):
    cell = _cell(blocks, seeds_ref, refs)
    visits_ref = tiles.InOrder(visits_ref, blocks.count, blocks.count)
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
        blocks, visits_ref[item, i, j], i - j, functools.partial(_attend, blocks, cell)
    )

    units = scoring.gradient_units(blocks)

    def finish(part, block, gradient):
        cell.d_content[part, 0, :, :, _of_block(blocks, block)] = gradient.astype(cell.query.dtype)
        cell.d_biases[part] += _fold_lanes(gradient)

    @pl.when(i == blocks.count - 1)
    def _finish_keys():
        finish(1, j, cell.key_sum[...] * units)
        finish(2, j, cell.value_sum[...] / (1 - blocks.rate))

    @pl.when(j == blocks.count - 1)
    def _finish_queries():
        finish(0, i, cell.query_sum[:, :, cell.of_i] * (units * np.float32(blocks.scale)))


def _weights(blocks, cell, near):
    """(probabilities as dropped, gradients by score) of each cell.head, [keys, queries]."""
    everything = slice(0, blocks.block)
    if near:
        scores = scoring.near_scores(
            blocks, cell.query, cell.key, cell.query_table, cell.c2p, cell.i - cell.j, everything
        )
        rows = [0.0] * blocks.heads
    else:
        scores, rows = scoring.far_scores(
            blocks,
            cell.query,
            cell.key,
            cell.key_table,
            cell.query_table,
            cell.i - cell.j,
            everything,
        )
    starts = (cell.i * blocks.block, cell.j * blocks.block)
    seen = tiles.visible(blocks, cell.query_segments[0], cell.key_segments[0], *starts)
    kept = [None] * blocks.heads
    if blocks.rate:
        sides = (blocks.block, blocks.block)
        kept = tiles.kept(blocks, cell.seeds, cell.item, cell.head * blocks.heads, *starts, *sides)
    result = []
    for e in range(blocks.heads):
        score = jnp.where(seen, scores[e] + (rows[e] - cell.lse[0, e]), tiles.UNSEEN)
        weight = jnp.exp2(score)
        gradient = cell.gradient[0, e]
        by_weight = tiles.product(cell.value[0, e], gradient, (0, 0))
        dropped = weight
        if blocks.rate:
            by_weight = jnp.where(kept[e], by_weight, 0.0)
            dropped = jnp.where(kept[e], weight, 0.0)
        both = cell.output[0, e].astype(jnp.float32) * gradient.astype(jnp.float32)
        delta = jnp.sum(both, axis=0, keepdims=True) * (1 - blocks.rate)
        result.append((dropped, weight * (by_weight - delta)))
    return result


def _attend(blocks, cell, near):
    """Adds what a pair of blocks gives to every gradient."""
    if near and blocks.c2p:
        scoring.fill_c2p(blocks, cell.query, cell.key_table, cell.i - cell.j, cell.c2p)
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


def _p2c_gradients(blocks, cell, folded):
    for tile in range(blocks.block // TILE):
        keys = slice(tile * TILE, (tile + 1) * TILE)
        window = scoring.table_window(blocks, cell.i - cell.j, tile)
        moved = tiles.unskew(folded[keys])
        for e in range(blocks.heads):
            by_row = tiles.unfold(moved, e, blocks).astype(cell.key.dtype)
            row, key = cell.query_table[e, :, window], cell.key[0, e, :, keys]
            cell.key_sum[e, :, keys] += tiles.product(row, by_row, (1, 1))
            cell.d_query_table[e, :, window] += tiles.product(key, by_row, (1, 0))


def _c2p_gradients(blocks, cell):
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
