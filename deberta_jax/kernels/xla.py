"""Disentangled attention in plain XLA, without a gather.

delta(i, j) depends on i - j alone, so both bias matrices are Toeplitz in the position axes: one
matmul against the relative rows expanded to distances, then a skew, which is only a reshape.
"""

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.kernels.relative import expand_rows

# Tokens that share a window of relative rows: small blocks waste little, large ones multiply well.
BLOCK = 32


def attention(
    query_BQHD,
    key_BKHD,
    value_BKHD,
    relative,
    query_segments_BQ,
    key_segments_BK,
    query_positions_BQ=None,
    dropout_rate=0.0,
    dropout_rng=None,
    causal=False,
):
    """Whole score matrices at once; see `kernels.disentangled_attention` for the arguments."""
    scores_BHQK = _product("BQHD,BKHD->BHQK", query_BQHD, key_BKHD)
    terms = 1
    if relative is not None and relative.key_RHD is not None:
        scores_BHQK += _c2p(query_BQHD, relative, query_positions_BQ)
        terms += 1
    if relative is not None and relative.query_RHD is not None:
        scores_BHQK += _p2c(key_BKHD, relative, query_positions_BQ)
        terms += 1
    scores_BHQK *= np.float32(1 / np.sqrt(terms * query_BQHD.shape[-1]))

    visible_BQK = (query_segments_BQ[:, :, None] == key_segments_BK[:, None, :]) & (
        key_segments_BK[:, None, :] > 0
    )
    if causal:
        keys = jnp.arange(key_BKHD.shape[1])
        positions = keys[None] if query_positions_BQ is None else query_positions_BQ
        visible_BQK &= positions[:, :, None] >= keys
    probabilities_BHQK = masked_softmax(scores_BHQK, visible_BQK[:, None])
    if dropout_rate > 0:
        keep = jax.random.bernoulli(dropout_rng, 1 - dropout_rate, probabilities_BHQK.shape)
        probabilities_BHQK = jnp.where(keep, probabilities_BHQK / (1 - dropout_rate), 0)
    return jnp.einsum("BHQK,BKHD->BQHD", probabilities_BHQK.astype(value_BKHD.dtype), value_BKHD)


def masked_softmax(scores, visible):
    """Softmax over the last axis where `visible`; rows that see nothing are zero."""
    scores = jnp.where(visible, scores, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.where(visible, jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0)), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)


def skew(table, length):
    """Reads row t from column (rows - 1 - t) on: out[..., t, s] = table[..., t, rows - 1 - t + s].

    Args:
        table: [..., rows, rows + length - 1].
        length: columns of the result.

    Returns:
        [..., rows, length], by reshapes alone: each row of the flat array starts one later.
    """
    *lead, rows, width = table.shape
    flat = table.reshape(*lead, rows * width)
    flat = jax.lax.slice_in_dim(flat, rows - 1, rows - 1 + rows * (width - 1), axis=-1)
    return flat.reshape(*lead, rows, width - 1)[..., :length]


def _c2p(query_BQHD, relative, query_positions_BQ):
    """Qc_i . Kr_delta(i, j): [B, H, Q, K]."""
    length = (len(relative.distance_rows) + 1) // 2
    # Descending in distance, so that a query's keys are read left to right.
    rows_WHD = expand_rows(relative.key_RHD, relative.distance_rows)[::-1]
    if query_positions_BQ is None:
        return _toeplitz(query_BQHD, rows_WHD)
    table_BHQW = _product("BQHD,WHD->BHQW", query_BQHD, rows_WHD)
    return _shift(table_BHQW, length - 1 - query_positions_BQ[:, None, :, None], length)


def _p2c(key_BKHD, relative, query_positions_BQ):
    """Qr_delta(i, j) . Kc_j: [B, H, Q, K]."""
    rows_WHD = expand_rows(relative.query_RHD, relative.distance_rows)
    bias_BHKL = _toeplitz(key_BKHD, rows_WHD)
    if query_positions_BQ is None:
        return bias_BHKL.swapaxes(-1, -2)
    one_hot_BQL = query_positions_BQ[..., None] == jnp.arange(key_BKHD.shape[1])
    return jnp.einsum(
        "BQL,BHKL->BHQK",
        one_hot_BQL.astype(bias_BHKL.dtype),
        bias_BHKL,
        precision=jax.lax.Precision.HIGHEST,
    )


def _toeplitz(x_BLHD, rows_WHD):
    """out[b, h, t, s] = x[b, t, h] . rows[L - 1 - t + s, h]: [B, H, L, L].

    By blocks of T tokens, each against the L + T - 1 rows that it can reach: about half the work
    of every token against all 2 L - 1 rows, and half the memory.
    """
    batch, length, heads, size = x_BLHD.shape
    block = BLOCK if length % BLOCK == 0 else length
    starts = range(length - block, -1, -block)
    windows_NWHD = jnp.stack([rows_WHD[s : s + length + block - 1] for s in starts])
    x_BNTHD = x_BLHD.reshape(batch, length // block, block, heads, size)
    table_BHNTW = _product("BNTHD,NWHD->BHNTW", x_BNTHD, windows_NWHD)
    return skew(table_BHNTW, length).reshape(batch, heads, length, length)


def _shift(table, start, length):
    """out[..., s] = table[..., start + s], for a start of each row's own, one bit at a time."""
    for power in reversed(range((length - 1).bit_length())):
        bit = 1 << power
        width = length + bit - 1  # what the remaining, smaller bits can still reach
        moved = table[..., bit : bit + width]
        missing = width - moved.shape[-1]  # never read: start + s stays inside the table
        moved = jnp.pad(moved, [(0, 0)] * (table.ndim - 1) + [(0, missing)])
        table = jnp.where(start & bit, moved, table[..., :width])
    return table[..., :length]


def _product(equation, left, right):
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)
