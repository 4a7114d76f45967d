"""Disentangled attention: the one public function, whichever implementation runs."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from deberta_jax.kernels import cpu, device, gpu, reference, tpu, xla
from deberta_jax.kernels.protocol import AttentionCall, Implementation
from deberta_jax.kernels.relative import Relative

_BY_NAME = {
    module.IMPLEMENTATION.name: module.IMPLEMENTATION for module in (xla, tpu, gpu, cpu, reference)
}
IMPLEMENTATIONS = tuple(_BY_NAME)
# The default of each platform, where it supports the call; plain XLA is the default of all others.
_BY_PLATFORM = {"tpu": tpu.IMPLEMENTATION, "gpu": gpu.IMPLEMENTATION, "cpu": cpu.IMPLEMENTATION}


def disentangled_attention(
    query_BQHD: Float[Array, "B Q H D"],
    key_BKHD: Float[Array, "B K H D"],
    value_BKHD: Float[Array, "B K H D"],
    relative: Relative | None,
    query_segments_BQ: Int[Array, "B Q"],
    key_segments_BK: Int[Array, "B K"],
    query_positions_BQ: Int[Array, "B Q"] | None = None,
    *,
    implementation: str = "auto",
    partition: PartitionSpec | None = None,
    **options: Any,
) -> Float[Array, "B Q H D"]:
    """Attends with content and relative position (paper, Eq. 4, with delta(i, j) in both terms).

    score(i, j) = [Qc_i Kc_j + Qc_i Kr_delta(i,j) + Qr_delta(i,j) Kc_j] / sqrt(D (1 + terms)),
    where i and j are positions in the sequence. A query sees the keys of its own segment; segment 0
    is padding, which nothing sees. A query that sees no key gets zeros.

    Args:
        query_BQHD: this and the next arguments are the fields of `AttentionCall`.
        key_BKHD: keys.
        value_BKHD: values.
        relative: relative tables, or None.
        query_segments_BQ: int32.
        key_segments_BK: int32.
        query_positions_BQ: int32, for queries at positions of their own.
        implementation: "auto", the fastest for the platform that supports the call (what it falls
            back to is logged once), or one of IMPLEMENTATIONS.
        partition: axes of the mesh in force that split B, Q, H and D; Q and D are whole on every
            device all the same. The compiler can divide no fused kernel, and of plain XLA's loops
            it would rather hold the whole batch on every device.
        options: `dropout_rate`, `dropout_rng`, `causal` and `biases_3HD`, of `AttentionCall`. The
            gradients of biases come with the others at no cost where an implementation fuses them.

    Returns:
        [B, Q, H, D] in the type of `value_BKHD`.

    Raises:
        UnsupportedCall: the implementation selected by name does not support these shapes or
            types; the message says what it supports.
        ValueError: there is no implementation of that name, or dropout has no key.
    """
    content = query_BQHD, key_BKHD, value_BKHD
    segments = query_segments_BQ, key_segments_BK
    call = AttentionCall(*content, relative, *segments, query_positions_BQ, **options)
    chosen = _chosen(implementation, call)
    if "biases" not in chosen.fuses or query_positions_BQ is not None:
        call = _with_biases_added(call)
    chosen.require(call)
    return _partitioned(chosen.attention, partition, call)


def default_implementation() -> Implementation:
    """What "auto" selects on this platform for every call that it supports."""
    return _BY_PLATFORM.get(device.platform(), xla.IMPLEMENTATION)


def _chosen(name: str, call: AttentionCall) -> Implementation:
    if name != "auto":
        if name not in _BY_NAME:
            raise ValueError(f"attention {name!r}: must be auto or one of {IMPLEMENTATIONS}")
        return _BY_NAME[name]
    default = default_implementation()
    if call.query_positions_BQ is not None and "positions" not in default.fuses:
        return xla.IMPLEMENTATION  # it serves EMD's few queries well: nothing to warn of
    if reason := default.supports(call):
        _log_once(f"attention falls back to plain XLA: {reason}")
        return xla.IMPLEMENTATION
    return default


@functools.cache
def _log_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def _with_biases_added(call: AttentionCall) -> AttentionCall:
    if call.biases_3HD is None:
        return call
    query, key, value = (x + bias for x, bias in zip(call.content, call.biases_3HD, strict=True))
    return dataclasses.replace(
        call, query_BQHD=query, key_BKHD=key, value_BKHD=value, biases_3HD=None
    )


def _partitioned(
    attention: Callable[[AttentionCall], Array],
    partition: PartitionSpec | None,
    call: AttentionCall,
) -> Array:
    """`attention` on each device's items and heads of the mesh in force.

    `first` says which they are, so that dropout falls as it would on one device.
    """
    items, _, heads, _ = partition or (None,) * 4
    optional = {
        name: getattr(call, name)
        for name in ("query_positions_BQ", "dropout_rng", "biases_3HD")
        if getattr(call, name) is not None
    }

    def local(tables, query, key, value, query_segments, key_segments, optional):
        relative = call.relative and dataclasses.replace(
            call.relative, key_RHD=tables[0], query_RHD=tables[1]
        )
        first_item = jax.lax.axis_index(items) * query.shape[0] if items else 0
        first_head = jax.lax.axis_index(heads) * query.shape[2] if heads else 0
        part = AttentionCall(
            *(query, key, value, relative, query_segments, key_segments),
            dropout_rate=call.dropout_rate,
            causal=call.causal,
            first=(first_item, first_head),
            **optional,
        )
        return attention(part)

    tables = None if call.relative is None else call.tables
    arrays = tables, *call.content, *call.segments, optional
    if not items and not heads:
        return local(*arrays)
    content, of_head = PartitionSpec(items, None, heads, None), PartitionSpec(None, heads, None)
    tokens = PartitionSpec(items, None)
    of_optional = {
        "query_positions_BQ": tokens,
        "dropout_rng": PartitionSpec(),
        "biases_3HD": of_head,
    }
    of_optional = {name: of_optional[name] for name in optional}
    specs = (of_head, content, content, content, tokens, tokens, of_optional)
    return jax.shard_map(local, in_specs=specs, out_specs=content, check_vma=False)(*arrays)
