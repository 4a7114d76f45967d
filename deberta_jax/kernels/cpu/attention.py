"""Fused disentangled attention for CPUs: the function around the two compiled passes."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from deberta_jax.kernels.cpu import build
from deberta_jax.kernels.xla import dropout as xla_dropout
from deberta_jax.kernels.xla.scores import reach


class _Settings(NamedTuple):
    """The attributes of both passes, by the names that they are called there."""

    scale: float
    rate: float
    reach: int
    causal: bool

    def attributes(self):
        return {
            "scale": np.float32(self.scale),
            "rate": np.float32(self.rate),
            "reach": np.int64(self.reach),
            "causal": self.causal,
        }


def attention(
    query_BLHD,
    key_BLHD,
    value_BLHD,
    relative,
    query_segments_BL,
    key_segments_BL,
    dropout_rate=0.0,
    dropout_rng=None,
    causal=False,
    first=(0, 0),
):
    """See `kernels.disentangled_attention` for the arguments not named here.

    Args:
        first: item and head of the whole batch that this call's first ones are: dropout depends on
            them.
    """
    batch, length, heads, size = query_BLHD.shape
    none = jnp.zeros((0, heads, size), query_BLHD.dtype)
    c2p = p2c = None
    distance_rows = np.zeros(2 * length - 1, np.int32)
    if relative is not None:
        c2p, p2c = relative.key_RHD, relative.query_RHD
        distance_rows = np.asarray(relative.distance_rows, np.int32)
    terms = (c2p is not None) + (p2c is not None)
    settings = _Settings(
        1 / math.sqrt((1 + terms) * size), float(dropout_rate), reach(distance_rows), causal
    )
    tables = tuple(none if table is None else table for table in (c2p, p2c))
    seeds = jnp.zeros((heads, 2, 0), jnp.uint32)
    if dropout_rate > 0:
        seeds = xla_dropout.seeds(dropout_rng, heads, batch, first)
    segments = [x.astype(jnp.int32) for x in (query_segments_BL, key_segments_BL)]
    operands = query_BLHD, key_BLHD, value_BLHD, *tables
    return _attention(settings, operands, (jnp.asarray(distance_rows), *segments, seeds))


def check(query, key, value, relative=None, query_positions=None):
    """Raises ValueError or NotImplementedError for what the kernels do not take."""
    if query_positions is not None:
        raise NotImplementedError("queries at places of their own")
    if not query.shape == key.shape == value.shape:
        raise ValueError(
            f"queries {query.shape}, keys {key.shape} and values {value.shape} must be of one shape"
        )
    tables = [] if relative is None else [relative.key_RHD, relative.query_RHD]
    operands = [query, key, value, *(table for table in tables if table is not None)]
    if types := {str(x.dtype) for x in operands} - {"float32"}:
        raise ValueError(f"the CPU kernel takes float32, not {', '.join(sorted(types))}")
    if problem := build.problem():
        raise NotImplementedError(f"the CPU kernel could not be built: {problem}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(settings, operands, constants):
    return _forward(settings, operands, constants)[0]


def _forward(settings, operands, constants):
    batch, length, heads, _ = operands[0].shape
    shapes = operands[0].shape, (batch, heads, length)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call(build.FORWARD, shapes, vmap_method="sequential")
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
