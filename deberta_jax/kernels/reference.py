"""Disentangled attention as the formula reads, with gathers and whole score matrices.

With delta(i, j) the relative row of the distance i - j, and `terms` the relative terms that are on:

    score(i, j) = [Qc_i Kc_j + Qc_i Kr_delta(i,j) + Qr_delta(i,j) Kc_j] / sqrt(D (1 + terms))
    output(i) = sum_j softmax_j(score(i, j)) V_j,  over the keys j that query i sees

It is slow, takes memory quadratic in the length, and supports every call: what the other
implementations are held to, and the one to read first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deberta_jax.kernels.protocol import AttentionCall, Implementation
from deberta_jax.kernels.xla import dropout
from deberta_jax.kernels.xla.scores import sum_type


def attention(call: AttentionCall) -> Float[Array, "B Q H D"]:
    """The formula; dropout drops what "xla" and "cpu" drop."""
    query, key, value = call.content
    batch, queries, heads, size = query.shape
    keys = key.shape[1]
    positions_BQ = call.query_positions_BQ
    if positions_BQ is None:
        positions_BQ = jnp.broadcast_to(jnp.arange(queries), (batch, queries))
    distance_BQK = positions_BQ[..., None] - jnp.arange(keys)

    scores_BHQK = _product("BQHD,BKHD->BHQK", query, key)
    c2p, p2c = call.tables
    if call.relative is not None:
        rows = jnp.asarray(np.asarray(call.relative.distance_rows))
        rows_BHQK = rows[distance_BQK + len(rows) // 2][:, None]
    if c2p is not None:
        by_row_BHQR = _product("BQHD,RHD->BHQR", query, c2p)
        scores_BHQK += jnp.take_along_axis(by_row_BHQR, rows_BHQK, axis=3)
    if p2c is not None:
        by_row_BHRK = _product("RHD,BKHD->BHRK", p2c, key)
        scores_BHQK += jnp.take_along_axis(by_row_BHRK, rows_BHQK, axis=2)
    terms = (c2p is not None) + (p2c is not None)
    scores_BHQK /= np.sqrt(size * (1 + terms))

    query_segments, key_segments = call.segments
    visible_BQK = (query_segments[..., None] == key_segments[:, None]) & (key_segments > 0)[:, None]
    if call.causal:
        visible_BQK &= distance_BQK >= 0
    visible_BHQK = visible_BQK[:, None]
    # A query that sees no key gets zeros.
    weights = jax.nn.softmax(jnp.where(visible_BHQK, scores_BHQK, -1e30), axis=-1) * visible_BHQK
    if call.dropout_rng is not None and call.dropout_rate:
        seeds = dropout.seeds(call.dropout_rng, heads, batch, call.first)
        kept_HBQK = dropout.keep(seeds, call.dropout_rate, 0, queries, keys)
        weights = jnp.where(kept_HBQK.swapaxes(0, 1), weights / (1 - call.dropout_rate), 0)
    return _product("BHQK,BKHD->BQHD", weights.astype(value.dtype), value).astype(value.dtype)


def _product(equation, left, right):
    return jnp.einsum(equation, left, right, preferred_element_type=sum_type(left))


IMPLEMENTATION = Implementation("reference", attention, supports=lambda call: None)
