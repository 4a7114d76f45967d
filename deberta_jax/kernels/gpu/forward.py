"""The forward pass on a GPU: a program owns a block of queries and walks over blocks of keys."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from deberta_jax.kernels.gpu import tiles


def forward(refs, setup):
    """Attention, and the log-sum-exp of its scores for the backward pass.

    Args:
        refs: arrays by name: query, key, value [B, L, H, D]; query_segments, key_segments,
            perhaps query_positions [B, L]; perhaps c2p, p2c [H, B, L, R] and slot_rows [W];
            uint32 seeds [4], two of them, the first item and the first head, where there is
            dropout; query_bounds (see `gpu_tiles.sweep`).
        setup: what is known when compiling.

    Returns:
        [B, Q, H, D] in the type of the values, and float32 [B, H, Q] in units of log 2.
    """
    items, queries, heads, _ = refs["query"].shape
    outputs = {
        "output": jax.ShapeDtypeStruct(refs["query"].shape, refs["value"].dtype),
        "log_sum": jax.ShapeDtypeStruct((items, heads, queries), jnp.float32),
    }
    outputs = pl.pallas_call(
        functools.partial(_forward, setup=setup),
        out_shape=outputs,
        grid=(pl.cdiv(queries, setup.forward.rows), heads, items),
        compiler_params=plgpu.CompilerParams(num_warps=setup.forward.warps, num_stages=2),
        interpret=setup.interpret,
        name="disentangled_attention_forward",
    )(refs)
    return outputs["output"], outputs["log_sum"]


def _forward(refs, outputs, setup):
    block, head, item = (pl.program_id(axis) for axis in range(3))
    queries = tiles.load_queries(refs, setup, item, block, setup.forward.rows)
    query_QD = tiles.load_tokens(refs["query"], item, head, queries)

    def step(key_block, carry, reach):
        sums_QD, total_Q1, top_Q1 = carry
        keys = tiles.load_keys(refs, item, key_block, setup.forward.columns)
        key_KD = tiles.load_tokens(refs["key"], item, head, keys)
        products_QK = tiles.dot(query_QD, key_KD.T)
        scores_QK = tiles.tile_scores(refs, setup, item, head, queries, keys, products_QK, reach)
        new_top_Q1 = jnp.maximum(top_Q1, jnp.max(scores_QK, axis=1, keepdims=True))
        weights_QK = jnp.exp2(scores_QK - _finite(new_top_Q1))
        shrink_Q1 = jnp.exp2(top_Q1 - _finite(new_top_Q1))
        total_Q1 = total_Q1 * shrink_Q1 + jnp.sum(weights_QK, axis=1, keepdims=True)
        if setup.dropout_rate:
            kept_QK = tiles.kept(refs, setup, item, head, queries, keys)
            weights_QK = jnp.where(kept_QK, weights_QK, 0)
        value_KD = tiles.load_tokens(refs["value"], item, head, keys)
        sums_QD = sums_QD * shrink_Q1 + tiles.dot(weights_QK.astype(value_KD.dtype), value_KD)
        return sums_QD, total_Q1, new_top_Q1

    # A column of one number a query, not a vector: Triton then leaves it where the products are.
    column = (len(queries.indices), 1)
    start = (
        jnp.zeros(query_QD.shape, jnp.float32),
        jnp.zeros(column, jnp.float32),
        jnp.full(column, -jnp.inf, jnp.float32),
    )
    sums_QD, total_Q1, top_Q1 = tiles.sweep(
        refs["query_bounds"], setup, item, block, True, step, start
    )
    total_Q1 = jnp.where(total_Q1 > 0, total_Q1, 1)  # a query that sees nothing gives zeros
    output_QD = sums_QD / (total_Q1 * (1 - setup.dropout_rate))
    tiles.store_tokens(outputs["output"], item, head, queries, output_QD)
    log_sum_Q1 = _finite(top_Q1) + jnp.log2(total_Q1)
    tiles.store_tokens(outputs["log_sum"], item, head, queries, log_sum_Q1[:, 0])


def _finite(top_Q1):
    return jnp.where(top_Q1 == -jnp.inf, 0, top_Q1)
