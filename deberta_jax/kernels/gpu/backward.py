"""The backward pass on a GPU: dQ from programs that own queries, dK and dV from ones that own keys.

Both recompute their scores, so nothing is added up across programs, and gradients repeat bit for
bit. The gradients of the relative tables leave as bands, [H, B, L, W]: a token's score gradients by
distance, where the nearest distances have a slot of their own and the first and last slots hold the
sums beyond. Matrix products outside turn bands into gradients. A band is as linear in L as a table.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from deberta_jax.kernels.gpu import tiles


def backward(refs, setup):
    """Gradients of queries, keys and values without their relative terms, and the bands of those.

    Args:
        refs: arrays by name: those of `gpu_forward.forward`, with query_bounds and key_bounds;
            d_output [B, Q, H, D]; log_sum and delta (the products of output and d_output) float32
            [B, H, Q].
        setup: what is known when compiling.

    Returns:
        Arrays by name: query, key, value [B, L, H, D], and where the terms are on, their bands
        c2p and p2c [H, B, L, W], still to be multiplied by the scale of the scores.
    """
    return {
        **_call(_d_query, refs, setup, {"query"}, "c2p"),
        **_call(_d_key_value, refs, setup, {"key", "value"}, "p2c"),
    }


def _call(kernel, refs, setup, names, table):
    side = "query" if table == "c2p" else "key"
    items, tokens, heads, _ = refs[side].shape
    outputs = {name: jax.ShapeDtypeStruct(refs[name].shape, refs[name].dtype) for name in names}
    zeros, aliases = {}, {}
    if table in refs:
        stores = table == "c2p" or setup.in_order  # else adds, which takes float32
        dtype = refs[table].dtype if stores else jnp.float32
        band = jnp.zeros((heads, items, tokens, setup.band.padded_width), dtype)
        zeros, outputs[table] = {table: band}, jax.ShapeDtypeStruct(band.shape, dtype)
        aliases = {len(refs): sorted(outputs).index(table)}  # slots without a pair stay zero
    return pl.pallas_call(
        functools.partial(kernel, setup=setup),
        out_shape=outputs,
        grid=(pl.cdiv(tokens, setup.backward.rows), heads, items),
        input_output_aliases=aliases,
        compiler_params=plgpu.CompilerParams(num_warps=setup.backward.warps, num_stages=2),
        interpret=setup.interpret,
        name=f"disentangled_attention_backward_{side}",
    )(refs, zeros)


def _d_query(refs, _, outputs, setup):
    block, head, item = (pl.program_id(axis) for axis in range(3))
    queries = tiles.load_queries(refs, setup, item, block, setup.backward.rows)
    query_QD, d_output_QD, log_sum_Q, delta_Q = (
        tiles.load_tokens(refs[name], item, head, queries)
        for name in ("query", "d_output", "log_sum", "delta")
    )

    def step(key_block, carry, reach):
        d_query_QD, ends_Q = carry
        keys = tiles.load_keys(refs, item, key_block, setup.backward.columns)
        key_KD = tiles.load_tokens(refs["key"], item, head, keys)
        value_KD = tiles.load_tokens(refs["value"], item, head, keys)
        scores_QK = tiles.tile_scores(
            refs, setup, item, head, queries, keys, tiles.dot(query_QD, key_KD.T), reach
        )
        weights_QK = jnp.exp2(scores_QK - log_sum_Q[:, None])
        d_weights_QK = tiles.dot(d_output_QD, value_KD.T)
        if setup.dropout_rate:
            kept_QK = tiles.kept(refs, setup, item, head, queries, keys)
            d_weights_QK = _drop(d_weights_QK, kept_QK, setup)
        d_scores_QK = weights_QK * (d_weights_QK - delta_Q[:, None])
        d_query_QD += tiles.dot(d_scores_QK.astype(key_KD.dtype), key_KD)
        if "c2p" in outputs:
            ends_Q = _add_to_band(
                outputs["c2p"], setup, item, head, queries, keys, d_scores_QK, reach, ends_Q
            )
        return d_query_QD, ends_Q

    zeros_Q = jnp.zeros(len(queries.indices), jnp.float32)
    start = jnp.zeros(query_QD.shape, jnp.float32), (zeros_Q, zeros_Q)
    d_query_QD, ends_Q = tiles.sweep(refs["query_bounds"], setup, item, block, True, step, start)
    tiles.store_tokens(outputs["query"], item, head, queries, d_query_QD * setup.scale)
    if "c2p" in outputs:
        _store_ends(outputs["c2p"], setup, item, head, queries, ends_Q)


def _d_key_value(refs, _, outputs, setup):
    block, head, item = (pl.program_id(axis) for axis in range(3))
    keys = tiles.load_keys(refs, item, block, setup.backward.rows)
    key_KD, value_KD = (
        tiles.load_tokens(refs[name], item, head, keys) for name in ("key", "value")
    )

    def step(query_block, carry, reach):
        d_key_KD, d_value_KD, ends_K = carry
        queries = tiles.load_queries(refs, setup, item, query_block, setup.backward.columns)
        query_QD, d_output_QD, log_sum_Q, delta_Q = (
            tiles.load_tokens(refs[name], item, head, queries)
            for name in ("query", "d_output", "log_sum", "delta")
        )
        scores_KQ = tiles.tile_scores(
            refs, setup, item, head, keys, queries, tiles.dot(key_KD, query_QD.T), reach
        )
        weights_KQ = jnp.exp2(scores_KQ - log_sum_Q[None, :])
        d_weights_KQ = tiles.dot(value_KD, d_output_QD.T)
        dropped_KQ = weights_KQ
        if setup.dropout_rate:
            kept_KQ = tiles.kept(refs, setup, item, head, keys, queries)
            dropped_KQ = _drop(weights_KQ, kept_KQ, setup)
            d_weights_KQ = _drop(d_weights_KQ, kept_KQ, setup)
        d_value_KD += tiles.dot(dropped_KQ.astype(d_output_QD.dtype), d_output_QD)
        d_scores_KQ = weights_KQ * (d_weights_KQ - delta_Q[None, :])
        d_key_KD += tiles.dot(d_scores_KQ.astype(query_QD.dtype), query_QD)
        if "p2c" in outputs:
            ends_K = _add_to_band(
                outputs["p2c"], setup, item, head, keys, queries, d_scores_KQ, reach, ends_K
            )
        return d_key_KD, d_value_KD, ends_K

    zeros_KD = jnp.zeros(key_KD.shape, jnp.float32)
    zeros_K = jnp.zeros(len(keys.indices), jnp.float32)
    start = zeros_KD, zeros_KD, (zeros_K, zeros_K)
    d_key_KD, d_value_KD, ends_K = tiles.sweep(
        refs["key_bounds"], setup, item, block, False, step, start
    )
    tiles.store_tokens(outputs["key"], item, head, keys, d_key_KD * setup.scale)
    tiles.store_tokens(outputs["value"], item, head, keys, d_value_KD)
    if "p2c" in outputs:
        _store_ends(outputs["p2c"], setup, item, head, keys, ends_K)


def _drop(values, kept, setup):
    return jnp.where(kept, values / (1 - setup.dropout_rate), 0)


def _add_to_band(band_ref, setup, item, head, rows, columns, d_scores, reach, ends):
    """Stores a tile's gradients by distance; those beyond the band join `ends`, which it returns.

    One token's pairs lie at distances of their own, so no two write to one slot, unless several
    queries stand at one position: then keys add, atomically. Sums of two repeat bit for bit.
    """

    def near():
        band, distance = setup.band, tiles.distances(rows, columns)
        low, high = distance <= band.lowest, distance >= band.highest
        inside = (distance > band.lowest) & (distance < band.highest) & rows.inside[:, None]
        _write_near(band_ref, setup, item, head, rows, distance - band.lowest, inside, d_scores)
        return tuple(
            end + jnp.sum(jnp.where(beyond, d_scores, 0), axis=1)
            for end, beyond in zip(ends, (low, high), strict=True)
        )

    def far():
        sums = jnp.sum(d_scores, axis=1)
        return (
            ends[0] + jnp.where(reach.is_low, sums, 0),
            ends[1] + jnp.where(reach.is_low, 0, sums),
        )

    return jax.lax.cond(reach.is_near, near, far)


def _write_near(band_ref, setup, item, head, rows, slots, inside, d_scores):
    tokens = jnp.broadcast_to(rows.indices[:, None], slots.shape)
    if rows.is_queries or setup.in_order:
        # Interpreted, masked stores write too: they need an index out of range.
        slots = jnp.where(inside, slots, setup.band.padded_width)
        values = d_scores.astype(band_ref.dtype)
        plgpu.store(band_ref.at[head, item, tokens, slots], values, mask=inside)
    else:
        tokens, slots = jnp.minimum(tokens, rows.length - 1), jnp.where(inside, slots, 0)
        jax.ref.addupdate(band_ref, (head, item, tokens, slots), jnp.where(inside, d_scores, 0))


def _store_ends(band_ref, setup, item, head, side, ends):
    for slot, sums in zip((0, setup.band.width - 1), ends, strict=True):
        slots = jnp.full(side.indices.shape, slot, jnp.int32)
        sums = sums.astype(band_ref.dtype)
        plgpu.store(band_ref.at[head, item, side.indices, slots], sums, mask=side.inside)
