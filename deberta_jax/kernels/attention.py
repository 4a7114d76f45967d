"""Disentangled attention: the one public function, whichever implementation runs."""

import functools
import logging

import jax
from jax.sharding import PartitionSpec

from deberta_jax.kernels import cpu, device, gpu, tpu, xla
from deberta_jax.kernels.relative import Relative

IMPLEMENTATIONS = ("xla", "tpu", "gpu", "cpu")
# The fused ones by the platform that runs them: each has `check` and `attention`.
_FUSED = {"tpu": tpu, "gpu": gpu, "cpu": cpu}


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
    biases_3HD: jax.Array | None = None,
    implementation: str = "auto",
    partition: PartitionSpec | None = None,
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
        biases_3HD: added to queries, keys and values before anything else; given here, their
            gradients come with the others at no cost.
        implementation: "auto", the fastest for the platform that fits the shapes (what it falls
            back to is logged once), or one of IMPLEMENTATIONS.
        partition: axes of the mesh in force that split B, Q, H and D; Q and D are whole on every
            device all the same. The compiler can divide no fused kernel, and of plain XLA's loops
            it would rather hold the whole batch on every device.

    Returns:
        [B, Q, H, D] in the type of `value_BKHD`.

    Raises:
        ValueError, NotImplementedError: the implementation asked for by name does not take these
            shapes or types; the message says what it takes.
    """
    if implementation == "auto":
        implementation = _fastest(query_BQHD, key_BKHD, value_BKHD, relative, query_positions_BQ)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention {implementation!r}: must be auto or one of {IMPLEMENTATIONS}")
    content = query_BQHD, key_BKHD, value_BKHD
    if biases_3HD is not None and (implementation != "tpu" or query_positions_BQ is not None):
        content = [x + bias for x, bias in zip(content, biases_3HD, strict=True)]
        biases_3HD = None
    segments = query_segments_BQ, key_segments_BK
    module = _FUSED.get(implementation, xla)
    if module is not xla:
        module.check(*content, relative, query_positions_BQ)
    kernel = functools.partial(module.attention, dropout_rate=dropout_rate, causal=causal)
    optional = dict(
        query_positions_BQ=query_positions_BQ, dropout_rng=dropout_rng, biases_3HD=biases_3HD
    )
    optional = {name: value for name, value in optional.items() if value is not None}
    return _partitioned(kernel, partition, relative, *content, *segments, optional)


def _fastest(*operands) -> str:
    name, query_positions = device.platform(), operands[-1]
    # On a CPU, plain XLA serves EMD's few queries.
    if name not in _FUSED or (name == "cpu" and query_positions is not None):
        return "xla"
    try:
        _FUSED[name].check(*operands)
    except (ValueError, NotImplementedError) as error:
        _log_once(f"attention falls back to plain XLA: {error}")
        return "xla"
    return name


@functools.cache
def _log_once(message):
    logging.getLogger(__name__).warning(message)


def _partitioned(kernel, partition, relative, *arrays):
    """`kernel` on each device's items and heads of the mesh in force.

    `first` tells it which they are, so that dropout falls as it would on one device.
    """
    items, _, heads, _ = partition or (None,) * 4

    def local(tables, query, key, value, query_segments, key_segments, optional):
        own = None if tables is None else Relative(*tables, relative.distance_rows)
        first = [
            jax.lax.axis_index(axes) * size if axes else 0
            for axes, size in ((items, query.shape[0]), (heads, query.shape[2]))
        ]
        segments = query_segments, key_segments
        return kernel(query, key, value, own, *segments, first=first, **optional)

    tables = None if relative is None else (relative.key_RHD, relative.query_RHD)
    if not items and not heads:
        return local(tables, *arrays)
    content, of_head = PartitionSpec(items, None, heads, None), PartitionSpec(None, heads, None)
    tokens = PartitionSpec(items, None)
    of_optional = {
        "query_positions_BQ": tokens,
        "dropout_rng": PartitionSpec(),
        "biases_3HD": of_head,
    }
    of_optional = {name: of_optional[name] for name in arrays[-1]}
    specs = (of_head, content, content, content, tokens, tokens, of_optional)
    return jax.shard_map(local, in_specs=specs, out_specs=content, check_vma=False)(tables, *arrays)
