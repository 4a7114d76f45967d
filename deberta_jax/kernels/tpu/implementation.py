"""Fused disentangled attention for TPU: the function around the two kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from deberta_jax.kernels import device
from deberta_jax.kernels.protocol import AttentionCall, Implementation
from deberta_jax.kernels.tpu.backward import backward
from deberta_jax.kernels.tpu.blocks import Blocks, choose, fits
from deberta_jax.kernels.tpu.forward import forward
from deberta_jax.kernels.tpu.operands import Operands, in_types_of, pad, seeds, tables
from deberta_jax.kernels.tpu.positioned import positioned_attention


def attention(call: AttentionCall, interpret: bool = False) -> Float[Array, "B Q H D"]:
    """[B, Q, H, D]; adds the biases of queries in order, so that their gradients cost nothing.

    Args:
        call: see `supports`.
        interpret: whether to run interpreted, without a TPU.
    """
    if call.query_positions_BQ is not None:
        return positioned_attention(call, interpret)
    length, heads, size = call.query_BQHD.shape[1:]
    rate, dtype = float(call.dropout_rate), call.query_BQHD.dtype
    blocks = choose(length, heads, size, call.relative, call.causal, rate, dtype, interpret)
    content_3BLHD = jnp.stack(call.content)
    content = pad(jnp.transpose(content_3BLHD, (0, 1, 3, 4, 2)), blocks.length)
    segments = [pad(x.astype(jnp.int32), blocks.length) for x in call.segments]
    words = seeds(call.dropout_rng if rate else None, call.first)
    rows = tables(call.relative, blocks, dtype)
    output = _attention(blocks, content, call.biases_3HD, rows, *segments, words)
    return jnp.transpose(output, (0, 3, 1, 2))[:, :length]


def supports(call: AttentionCall) -> str | None:
    """None, or why the kernels do not support the call on this chip."""
    query, key, value = (x.shape for x in call.content)
    dtype, in_order = call.key_BKHD.dtype, call.query_positions_BQ is None
    if not in_order and not device.turns_by_row():
        return f"queries at positions of their own on a {device.kind()}"
    _, length, _, size = key
    if not fits(choose(length, 1, size, call.relative, False, 0.0, dtype, False), size, dtype):
        return f"{length} {dtype} tokens on a {device.kind()}"
    if key != value or (in_order and query != key):
        return f"queries {query}, keys {key} and values {value} must be of one shape"
    types = {str(x.dtype) for x in call.content}
    if len(types) > 1 or not types <= {"float32", "bfloat16"}:
        return "queries, keys and values must be float32 or bfloat16, all three, not " + ", ".join(
            sorted(types)
        )
    if query[-1] % 16:
        return f"the head size must be a multiple of 16, not {query[-1]}"
    return None


def _visits(
    blocks: Blocks, query_segments_BL: Int[Array, "B L"], key_segments_BL: Int[Array, "B L"]
) -> Int[Array, "B I J"]:
    """Whether the block pairs may share a document, by their ranges of ids."""
    of = [
        x.reshape(x.shape[0], blocks.count, blocks.block)
        for x in (query_segments_BL, key_segments_BL)
    ]
    low = [jnp.min(jnp.where(x > 0, x, np.iinfo(np.int32).max), axis=-1) for x in of]
    high = [jnp.max(x, axis=-1) for x in of]
    shared = (low[0][:, :, None] <= high[1][:, None]) & (low[1][:, None] <= high[0][:, :, None])
    if blocks.causal:
        shared &= np.tri(blocks.count, dtype=bool)
    return shared.astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(blocks, content, biases, tables, query_segments, key_segments, seeds):
    return _forward(blocks, content, biases, tables, query_segments, key_segments, seeds)[0]


def _forward(blocks, content, biases, tables, query_segments, key_segments, seeds):
    """Biases are added here so that their gradients are sums that the kernel takes on its way:
    over the lanes of its layout, a reduction by XLA would cost a tenth of the attention. A remat
    policy that saves what is named "attention" keeps the kernel from running twice."""
    if biases is not None:
        content = content + biases[:, None, :, :, None]
    scale = jnp.asarray([blocks.scale, 1, 1], content.dtype)
    content = checkpoint_name(content * scale[:, None, None, None, None], "attention")
    visits = _visits(blocks, query_segments, key_segments)
    query_segments = jnp.where(query_segments > 0, query_segments, -1)  # not even padding's
    segments = query_segments[:, None], key_segments[:, None]
    operands = Operands(seeds, visits, content, tables, *segments)
    output, lse = forward(blocks, operands)
    output, lse = _kept(output), checkpoint_name(lse, "attention")
    return output, (operands, output, lse, biases)


def _kept(x: Array) -> Array:
    """x, named "attention" by its bits: of floats that are kept and used, JAX rounds a copy."""
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = checkpoint_name(jax.lax.bitcast_convert_type(x, unsigned), "attention")
    return jax.lax.bitcast_convert_type(bits, x.dtype)


def _backward(blocks, residuals, gradient):
    operands, output, lse, biases = residuals
    d_content, d_tables, d_biases = backward(blocks, operands, output, lse, gradient)
    d_tables = in_types_of(operands.tables, d_tables)
    of_biases = None if biases is None else d_biases.astype(biases.dtype)
    return d_content, of_biases, d_tables, None, None, None


_attention.defvjp(_forward, _backward)

IMPLEMENTATION = Implementation(
    "tpu", attention, supports, fuses=frozenset({"dropout", "biases", "positions"})
)
