"""Disentangled attention: the one public function, whichever implementation runs."""

import jax

from deberta_jax.kernels import xla
from deberta_jax.kernels.relative import Relative

_IMPLEMENTATIONS = {"xla": xla.attention}


def disentangled_attention(
    query_BQHD: jax.Array,
    key_BKHD: jax.Array,
    value_BKHD: jax.Array,
    relative: Relative | None,
    query_segments_BQ: jax.Array,
    key_segments_BK: jax.Array,
    query_positions_BQ: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    causal: bool = False,
    implementation: str = "auto",
) -> jax.Array:
    """Attends with content and relative position (paper, Eq. 4, with delta(i, j) in both terms).

    score(i, j) = [Qc_i Kc_j + Qc_i Kr_delta(i,j) + Qr_delta(i,j) Kc_j] / sqrt(D (1 + terms)),
    where i and j are places in the sequence. A query sees the keys of its own segment; segment 0 is
    padding, which nothing sees. A query that sees no key gets zeros.

    Args:
        query_BQHD: queries; Q = K, in order, unless `query_positions_BQ` says where they stand.
        key_BKHD: keys.
        value_BKHD: values.
        relative: the relative tables and the constant that maps distances to their rows; None for
            plain attention.
        query_segments_BQ: int32 segment of each query.
        key_segments_BK: int32 segment of each key.
        query_positions_BQ: int32 place of each query in the sequence of keys, for queries at
            arbitrary places (the Enhanced Mask Decoder's masked tokens).
        dropout_rate: share of the attention probabilities dropped.
        dropout_rng: key of that dropout; needed where the rate is above 0.
        causal: whether a query sees no key after its own place.
        implementation: "auto" or the name of one.

    Returns:
        [B, Q, H, D] in the type of `value_BKHD`.
    """
    if implementation == "auto":
        implementation = "xla"
    return _IMPLEMENTATIONS[implementation](
        query_BQHD,
        key_BKHD,
        value_BKHD,
        relative,
        query_segments_BQ,
        key_segments_BK,
        query_positions_BQ,
        dropout_rate,
        dropout_rng,
        causal,
    )
