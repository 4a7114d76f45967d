"""Fused disentangled attention for CPUs: the function around the two compiled passes."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from deberta_jax.kernels.cpu import build
from deberta_jax.kernels.protocol import AttentionCall, Implementation
from deberta_jax.kernels.xla import dropout as xla_dropout
from deberta_jax.kernels.xla.scores import reach


class _Settings(NamedTuple):
    """The attributes of both passes, by the names that they are called there."""

    scale: float
    rate: float
    reach: int
    causal: bool

    def attributes(self) -> dict[str, np.generic | bool]:
        return {
            "scale": np.float32(self.scale),
            "rate": np.float32(self.rate),
            "reach": np.int64(self.reach),
            "causal": self.causal,
        }


def attention(call: AttentionCall) -> Float[Array, "B Q H D"]:
    """[B, L, H, D] of float32 queries in order."""
    batch, length, heads, size = call.query_BQHD.shape
    none = jnp.zeros((0, heads, size), call.query_BQHD.dtype)
    distance_rows = np.zeros(2 * length - 1, np.int32)
    if call.relative is not None:
        distance_rows = np.asarray(call.relative.distance_rows, np.int32)
    terms = sum(table is not None for table in call.tables)
    rate = float(call.dropout_rate)
    scale = 1 / math.sqrt((1 + terms) * size)
    settings = _Settings(scale, rate, reach(distance_rows), call.causal)
    tables = tuple(none if table is None else table for table in call.tables)
    seeds = jnp.zeros((heads, 2, 0), jnp.uint32)
    if call.dropout_rng is not None and rate > 0:
        seeds = xla_dropout.seeds(call.dropout_rng, heads, batch, call.first)
    segments = [x.astype(jnp.int32) for x in call.segments]
    operands = *call.content, *tables
    return _attention(settings, operands, (jnp.asarray(distance_rows), *segments, seeds))


def supports(call: AttentionCall) -> str | None:
    """None, or why the kernels do not support the call."""
    if call.query_positions_BQ is not None:
        return "queries at positions of their own"
    query, key, value = (x.shape for x in call.content)
    if not query == key == value:
        return f"queries {query}, keys {key} and values {value} must be of one shape"
    operands = [x for x in (*call.content, *call.tables) if x is not None]
    if types := {str(x.dtype) for x in operands} - {"float32"}:
        return f"the CPU kernel takes float32, not {', '.join(sorted(types))}"
    if problem := build.problem():
        return f"the CPU kernel could not be built: {problem}"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(settings, operands, constants):
    return _forward(settings, operands, constants)[0]


def _forward(settings, operands, constants):
    batch, length, heads, _ = operands[0].shape
    shapes = operands[0].shape, (batch, heads, length)
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call(build.FORWARD, results, vmap_method="sequential")
    output, log_sums = call(*operands, *constants, **settings.attributes())
    # A remat policy that saves what is named "attention" keeps the kernel from running twice.
    output, log_sums = (checkpoint_name(x, "attention") for x in (output, log_sums))
    return output, (operands, constants, output, log_sums)


def _backward(settings, residuals, gradient):
    operands, constants, output, log_sums = residuals
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
    call = jax.ffi.ffi_call(build.BACKWARD, shapes, vmap_method="sequential")
    gradients = call(*operands, *constants, output, log_sums, gradient, **settings.attributes())
    return tuple(gradients), None


_attention.defvjp(_forward, _backward)

IMPLEMENTATION = Implementation(
    "cpu", attention, supports, fuses=frozenset({"dropout"}), qkv_layout="BL3HD"
)
