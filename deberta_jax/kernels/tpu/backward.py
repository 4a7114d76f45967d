"""The backward kernel: recomputes the probabilities, and gives all five gradients in one pass.

Gradients of keys and values gather over query blocks, those of queries over key blocks, those of
the tables over everything but the head; all gather in VMEM, and each is written once.
"""

import functools

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


def _kernel(blocks, seeds_ref, visits_ref, query_ref, key_ref, value_ref, *refs):
    query_segments_ref, key_segments_ref, output_ref, lse_ref, gradient_ref, *refs = refs
    key_table_ref = refs.pop(0) if blocks.c2p else None
    query_table_ref = refs.pop(0) if blocks.p2c else None
    d_content_ref, d_biases_ref, *refs = refs
    d_key_table_ref = refs.pop(0) if blocks.c2p else None
    d_query_table_ref = refs.pop(0) if blocks.p2c else None
    query_sum_ref, key_sum_ref, value_sum_ref, *refs = refs
    c2p_ref, transposed_ref = refs or (None, None)
    visits_ref = tiles.InOrder(visits_ref, blocks.count, blocks.count)
    head, item, j, i = (pl.program_id(axis) for axis in range(4))
    of_block = pl.ds(pl.multiple_of(i * blocks.block, TILE), blocks.block)

    @pl.when((item == 0) & (j == 0) & (i == 0))
    def _start_head():
        for ref in (d_biases_ref, d_key_table_ref, d_query_table_ref):
            if ref is not None:
                ref[...] = jnp.zeros_like(ref)

    @pl.when(i == 0)
    def _start_keys():
        key_sum_ref[...] = jnp.zeros_like(key_sum_ref)
        value_sum_ref[...] = jnp.zeros_like(value_sum_ref)

    @pl.when(j == 0)
    def _start_queries():
        query_sum_ref[:, :, of_block] = jnp.zeros_like(key_sum_ref)

    def weights(near):
        """(probabilities as dropped, gradients by score) of each head, [keys, queries]."""
        everything = slice(0, blocks.block)
        if near:
            scores = scoring.near_scores(
                blocks, query_ref, key_ref, query_table_ref, c2p_ref, i - j, everything
            )
            rows = [0.0] * blocks.heads
        else:
            scores, rows = scoring.far_scores(
                blocks, query_ref, key_ref, key_table_ref, query_table_ref, i - j, everything
            )
        starts = (i * blocks.block, j * blocks.block)
        seen = tiles.visible(blocks, query_segments_ref[0], key_segments_ref[0], *starts)
        kept = [None] * blocks.heads
        if blocks.rate:
            sides = (blocks.block, blocks.block)
            kept = tiles.kept(blocks, seeds_ref, item, head * blocks.heads, *starts, *sides)
        result = []
        for e in range(blocks.heads):
            score = jnp.where(seen, scores[e] + (rows[e] - lse_ref[0, e]), tiles.UNSEEN)
            weight = jnp.exp2(score)
            gradient = gradient_ref[0, e]
            by_weight = tiles.product(value_ref[0, e], gradient, (0, 0))
            dropped = weight
            if blocks.rate:
                by_weight = jnp.where(kept[e], by_weight, 0.0)
                dropped = jnp.where(kept[e], weight, 0.0)
            both = output_ref[0, e].astype(jnp.float32) * gradient.astype(jnp.float32)
            delta = jnp.sum(both, axis=0, keepdims=True) * (1 - blocks.rate)
            result.append((dropped, weight * (by_weight - delta)))
        return result

    def attend(near):
        if near and blocks.c2p:
            scoring.fill_c2p(blocks, query_ref, key_table_ref, i - j, c2p_ref)
        by_head = weights(near)
        dtype = query_ref.dtype
        for e, (weight, by_score) in enumerate(by_head):
            gradient, by_score_low = gradient_ref[0, e], by_score.astype(dtype)
            query, key = query_ref[0, e], key_ref[0, e]
            value_sum_ref[e] += tiles.product(gradient, weight.astype(dtype), (1, 1))
            to_query = tiles.product(key, by_score_low, (1, 0))
            if near:
                key_sum_ref[e] += tiles.product(query, by_score_low, (1, 1))
            else:
                moved = scoring.far_query(blocks, query, query_table_ref, e, i - j)
                key_sum_ref[e] += tiles.product(moved, by_score_low, (1, 1))
                by_query = jnp.sum(by_score, axis=0, keepdims=True)
                if blocks.p2c:
                    total = jnp.sum(to_query, axis=1, keepdims=True)
                    scoring.add_far_row(blocks, d_query_table_ref, e, i - j, total)
                if blocks.c2p:
                    of_query = query.astype(jnp.float32) * by_query
                    total = jnp.sum(of_query, axis=1, keepdims=True)
                    scoring.add_far_row(blocks, d_key_table_ref, e, j - i, total)
                    to_query += by_query * scoring.far_row(blocks, key_table_ref, e, j - i)
            query_sum_ref[e, :, of_block] += to_query
        if near:
            folded = tiles.fold([by_score for _, by_score in by_head], blocks)
            if blocks.p2c:
                p2c_gradients(folded)
            if blocks.c2p:
                transposed_ref[...] = folded.T
                c2p_gradients()

    def p2c_gradients(folded):
        for tile in range(blocks.block // TILE):
            keys = slice(tile * TILE, (tile + 1) * TILE)
            window = scoring.table_window(blocks, i - j, tile)
            moved = tiles.unskew(folded[keys])
            for e in range(blocks.heads):
                by_row = tiles.unfold(moved, e, blocks).astype(key_ref.dtype)
                row, key = query_table_ref[e, :, window], key_ref[0, e, :, keys]
                key_sum_ref[e, :, keys] += tiles.product(row, by_row, (1, 1))
                d_query_table_ref[e, :, window] += tiles.product(key, by_row, (1, 0))

    def c2p_gradients():
        for tile in range(blocks.block // TILE):
            queries = slice(tile * TILE, (tile + 1) * TILE)
            of_tile = pl.ds(pl.multiple_of(i * blocks.block + tile * TILE, TILE), TILE)
            window = scoring.table_window(blocks, j - i, tile)
            moved = tiles.unskew(transposed_ref[queries])
            for e in range(blocks.heads):
                by_row = tiles.unfold(moved, e, blocks).astype(query_ref.dtype)
                row, query = key_table_ref[e, :, window], query_ref[0, e, :, queries]
                query_sum_ref[e, :, of_tile] += tiles.product(row, by_row, (1, 1))
                d_key_table_ref[e, :, window] += tiles.product(query, by_row, (1, 0))

    scoring.when_visited(blocks, visits_ref[item, i, j], i - j, attend)

    units = scoring.gradient_units(blocks)

    def finish(part, block, gradient):
        start = pl.multiple_of(block * blocks.block, TILE)
        d_content_ref[part, 0, :, :, pl.ds(start, blocks.block)] = gradient.astype(query_ref.dtype)
        d_biases_ref[part] += _fold_lanes(gradient)

    @pl.when(i == blocks.count - 1)
    def _finish_keys():
        finish(1, j, key_sum_ref[...] * units)
        finish(2, j, value_sum_ref[...] / (1 - blocks.rate))

    @pl.when(j == blocks.count - 1)
    def _finish_queries():
        finish(0, i, query_sum_ref[:, :, of_block] * (units * np.float32(blocks.scale)))


def _fold_lanes(x_GDT):
    """Sums a block's tokens to TILE of them; the rest of the sum is a matter for XLA."""
    return sum(x_GDT[..., start : start + TILE] for start in range(0, x_GDT.shape[-1], TILE))
