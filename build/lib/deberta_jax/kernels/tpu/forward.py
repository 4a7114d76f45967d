"""The forward kernel: online softmax over key blocks, one or two heads a cell."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_jax.kernels.tpu import scores as scoring
from deberta_jax.kernels.tpu import softmax, tiles

# Keys whose scores are held at once.
_KEYS = 256


def forward(blocks, seeds, visits, content, tables, query_segments, key_segments):
    """(output [B, H, D, L], log2-sum-exp2 [B, H, 1, L], float32).

    Scores are in bits: the scale and log2(e) are already in the queries and in p2c's table.

    Args:
        blocks: the static shape.
        seeds: int32 [4] of the dropout: two words of the key, first item, first head.
        visits: int32 [B, I, J]: whether query block i and key block j share a document.
        content: queries, keys and values, [3, B, H, D, L]: one array, so that the projection that
            makes it is one matmul and nothing is copied.
        tables: (c2p's, p2c's) [H, D, W], None where a term is off.
        query_segments, key_segments: int32 [B, 1, L].
    """
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
    present = [t for t in tables if t is not None]
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
    )(seeds, visits.reshape(-1), content, content, content, query_segments, key_segments, *present)


def _kernel(blocks, seeds_ref, visits_ref, query_ref, key_ref, value_ref, *refs):
    query_segments_ref, key_segments_ref, *refs = refs
    key_table_ref = refs.pop(0) if blocks.c2p else None
    query_table_ref = refs.pop(0) if blocks.p2c else None
    output_ref, lse_ref, *refs = refs
    sums, refs = softmax.Sums(*refs[:3]), refs[3:]
    c2p_ref = refs.pop() if blocks.c2p else None
    visits_ref = tiles.InOrder(visits_ref, blocks.count, blocks.count)
    head, item, i, j = (pl.program_id(axis) for axis in range(4))

    @pl.when(j == 0)
    def _start():
        sums.start()

    def attend(near):
        if near and blocks.c2p:
            scoring.fill_c2p(blocks, query_ref, key_table_ref, i - j, c2p_ref)
        for start in range(0, blocks.block, min(_KEYS, blocks.block)):
            keys = slice(start, min(start + _KEYS, blocks.block))
            if near:
                scores = scoring.near_scores(
                    blocks, query_ref, key_ref, query_table_ref, c2p_ref, i - j, keys
                )
                rows = [0.0] * blocks.heads
            else:
                scores, rows = scoring.far_scores(
                    blocks, query_ref, key_ref, key_table_ref, query_table_ref, i - j, keys
                )
            seen = tiles.visible(
                blocks,
                query_segments_ref[0],
                key_segments_ref[0, :, keys],
                i * blocks.block,
                j * blocks.block + start,
            )
            kept = None
            if blocks.rate:
                kept = tiles.kept(
                    blocks,
                    seeds_ref,
                    item,
                    head * blocks.heads,
                    i * blocks.block,
                    j * blocks.block + start,
                    keys.stop - keys.start,
                    blocks.block,
                )
            for e in range(blocks.heads):
                score = jnp.where(seen, scores[e], tiles.UNSEEN)
                sums.add(e, score, rows[e], kept and kept[e], value_ref[0, e, :, keys])

    scoring.when_visited(blocks, visits_ref[item, i, j], i - j, attend)

    @pl.when(j == blocks.count - 1)
    def _finish():
        sums.finish(blocks, output_ref, lse_ref)
