"""Disentangled attention in plain XLA: the fallback everywhere, and what runs on CPUs.

Short sequences are computed at once, longer ones by blocks of queries, so that memory is linear in
the length on every path.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deberta_jax.kernels.protocol import AttentionCall, Implementation
from deberta_jax.kernels.xla import dropout as xla_dropout
from deberta_jax.kernels.xla.blocks import Tiling, attend
from deberta_jax.kernels.xla.rows import expand
from deberta_jax.kernels.xla.scores import reach

# Sequences up to WHOLE are one block; longer ones are cut into blocks of BLOCK queries.
WHOLE, BLOCK = 512, 256
# Tokens of a Toeplitz product that share a window of rows: small tiles waste little work, large
# ones multiply well (a matmul of 32 rows runs at a fifth of the speed of one of 128 on a CPU).
SHORT_TILE, LONG_TILE = 64, 128
# A CPU computes at most so many scores at once, or else, to keep them in its cache, only CACHED.
SCORES, CACHED = 2**20, 2**18


def attention(call: AttentionCall) -> Float[Array, "B Q H D"]:
    """[B, Q, H, D] of any call; biases must have been added."""
    batch, queries, heads, size = call.query_BQHD.shape
    keys, positions_BQ = call.key_BKHD.shape[1], call.query_positions_BQ
    tables = dict(zip(("c2p", "p2c"), call.tables, strict=True))
    tables = {term: table for term, table in tables.items() if table is not None}

    tile = min(keys, SHORT_TILE if keys < WHOLE else LONG_TILE)
    keys = _ceil(keys, tile if keys <= WHOLE else BLOCK)
    span = keys if keys <= WHOLE else BLOCK
    block = span if positions_BQ is None else min(queries, BLOCK)
    padded_queries = _ceil(queries, block)
    tiling = Tiling(
        heads=_heads_at_once(heads, batch * block * keys),
        block=block,
        span=span,
        tile=tile,
        scale=1 / math.sqrt((1 + len(tables)) * size),
        dropout_rate=call.dropout_rate,
        causal=call.causal,
    )
    rows = {}
    if call.relative is not None:
        distance_rows = call.relative.distance_rows
        near = min(keys, _ceil(span + 2 * reach(distance_rows), tile))
        for term, table_RHD in tables.items():
            anywhere = term == "c2p" and positions_BQ is not None
            rows[term] = _by_distance(table_RHD, distance_rows, keys if anywhere else near)
    operands = {
        "query": _heads_first(call.query_BQHD, padded_queries),
        "key": _heads_first(call.key_BKHD, keys),
        "value": _heads_first(call.value_BKHD, keys),
        "rows": rows,
    }
    tokens = {
        "query_segments": _padded(call.query_segments_BQ, padded_queries, axis=1),
        "key_segments": _padded(call.key_segments_BK, keys, axis=1),
    }
    if positions_BQ is not None:
        tokens["positions"] = _padded(positions_BQ, padded_queries, axis=1)
    seeds = None
    if call.dropout_rng is not None and call.dropout_rate > 0:
        seeds = xla_dropout.seeds(call.dropout_rng, heads, batch, call.first)
    out_HBQD = attend(tiling, operands, tokens, seeds)
    return out_HBQD[:, :, :queries].transpose(1, 2, 0, 3)


def _heads_at_once(heads, scores_of_head):
    """How many heads a CPU computes at once: all, or a divisor whose scores fit its cache."""
    if heads * scores_of_head <= SCORES:
        return heads
    fit = max(1, CACHED // scores_of_head)
    return max(n for n in range(1, fit + 1) if heads % n == 0)


def _by_distance(table_RHD, distance_rows, near):
    """The row of each distance from -(near - 1) to near - 1, heads first: [H, 2 near - 1, D]."""
    middle = len(distance_rows) // 2
    beyond = max(0, near - 1 - middle)  # only padding stands there
    rows = np.pad(distance_rows, beyond, mode="edge")
    middle += beyond
    return expand(table_RHD, rows[middle - near + 1 : middle + near])


def _heads_first(x_BLHD, length):
    return _padded(x_BLHD.transpose(2, 0, 1, 3), length, axis=2)


def _padded(x, length, axis):
    """`x` with zeros at the end of an axis; as segments, those are padding, which nothing sees."""
    missing = length - x.shape[axis]
    if missing == 0:
        return x
    return jnp.pad(x, [(0, missing if a == axis else 0) for a in range(x.ndim)])


def _ceil(length, unit):
    return -(-length // unit) * unit


IMPLEMENTATION = Implementation(
    "xla",
    attention,
    supports=lambda call: None,
    fuses=frozenset({"dropout", "positions"}),
)
