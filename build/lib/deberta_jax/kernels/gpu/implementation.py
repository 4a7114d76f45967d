"""Fused disentangled attention for GPUs, in Pallas (Triton): see `tiles` for how it works."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from deberta_jax.kernels.gpu.backward import backward
from deberta_jax.kernels.gpu.forward import forward
from deberta_jax.kernels.gpu.tiles import ALIGNMENT, Band, Setup, Tile
from deberta_jax.kernels.protocol import AttentionCall, Implementation

HEAD_SIZES = (32, 64, 128)
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
# By bytes of a number and head size: the largest tiles that keep to the registers of a Hopper GPU.
# No side equals the head size, or Triton lays table lookups out as dense loads, not coalesced.
_FORWARD_TILES = {
    (2, 32): Tile(64, 64, warps=4),
    (2, 64): Tile(128, 32, warps=8),
    (2, 128): Tile(64, 32, warps=4),
    (4, 32): Tile(64, 64, warps=4),
    (4, 64): Tile(32, 32, warps=4),
    (4, 128): Tile(32, 32, warps=4),
}
_BACKWARD_TILES = {
    (2, 32): Tile(128, 64, warps=8),
    (2, 64): Tile(128, 32, warps=8),
    (2, 128): Tile(64, 32, warps=8),
    (4, 32): Tile(64, 16, warps=4),
    (4, 64): Tile(32, 32, warps=4),
    (4, 128): Tile(32, 32, warps=8),
}


def attention(call: AttentionCall, interpret: bool = False) -> Float[Array, "B Q H D"]:
    """Fused attention, differentiable, with memory linear in length.

    Values and gradients repeat bit for bit, except that a key's p2c gradient may round differently
    where three or more queries that see it stand at one position. Products of float32 follow
    `jax.default_matmul_precision`. The relative tables are cast to the type of the queries.

    Args:
        call: of one type, float32, bfloat16 or float16; head size 32, 64 or 128.
        interpret: whether Pallas interprets the kernels, on any machine, slowly.

    Raises:
        UnsupportedCall: shapes or types that the kernels do not support.
    """
    IMPLEMENTATION.require(call)
    dtype, relative = call.query_BQHD.dtype, call.relative
    operands = dict(zip(("query", "key", "value"), call.content, strict=True))
    constants = _constants(call)
    band, terms = None, 1
    if relative is not None and (relative.key_RHD is not None or relative.query_RHD is not None):
        band, used = _band(np.asarray(relative.distance_rows))
        for name, rows_RHD in (("c2p", relative.key_RHD), ("p2c", relative.query_RHD)):
            if rows_RHD is not None:
                operands[name] = _aligned(rows_RHD[used].astype(dtype))
                terms += 1
        if not band.is_identity:
            constants["slot_rows"] = jnp.asarray(band.rows)
    size = call.query_BQHD.shape[-1]
    setup = Setup(
        scale=float((terms * size) ** -0.5),
        band=band,
        causal=call.causal,
        in_order=call.query_positions_BQ is None,
        dropout_rate=call.dropout_rate,
        forward=_FORWARD_TILES[dtype.itemsize, size],
        backward=_BACKWARD_TILES[dtype.itemsize, size],
        interpret=interpret,
    )
    return _attend(setup, operands, constants)


def supports(call: AttentionCall) -> str | None:
    """None, or why the kernels do not support the call."""
    shapes = [x.shape for x in call.content]
    dtypes = [x.dtype for x in call.content]
    if any(len(shape) != 4 for shape in shapes) or shapes[1] != shapes[2]:
        return f"queries, keys and values are [B, L, H, D], not {shapes}"
    (items, queries, *heads), (key_items, keys, *key_heads) = shapes[:2]
    if (items, heads) != (key_items, key_heads):
        return f"queries {shapes[0]} and keys {shapes[1]} differ in more than length"
    if heads[1] not in HEAD_SIZES:
        return f"head size {heads[1]}; the GPU kernels support {HEAD_SIZES}"
    if len(set(dtypes)) > 1 or dtypes[0] not in DTYPES:
        names, supported = (", ".join(str(jnp.dtype(x)) for x in xs) for xs in (dtypes, DTYPES))
        return f"types {names}; the GPU kernels support one of {supported}"
    if call.query_positions_BQ is None and queries != keys:
        return f"{queries} queries at {keys} keys need query positions"
    if call.relative is not None and len(call.relative.distance_rows) != 2 * keys - 1:
        rows = len(call.relative.distance_rows)
        return f"{keys} keys need {2 * keys - 1} rows of distances, not {rows}"
    return None


def _constants(call):
    """What has no gradient: segments, positions and the seeds of dropout."""
    constants = {"query_segments": call.query_segments_BQ, "key_segments": call.key_segments_BK}
    if call.query_positions_BQ is not None:
        constants["query_positions"] = call.query_positions_BQ
    constants = {name: jnp.asarray(x, jnp.int32) for name, x in constants.items()}
    if call.dropout_rate:
        seeds = jax.random.bits(call.dropout_rng, (2,), jnp.uint32)
        constants["seeds"] = jnp.concatenate([seeds, jnp.array(call.first, jnp.uint32)])
    return constants


def _band(distance_rows):
    """The distances up to those beyond which rows stay the same, and the rows in use, a slice."""
    keys = (len(distance_rows) + 1) // 2
    changes = np.flatnonzero(np.diff(distance_rows))
    lowest, highest = (changes[0], changes[-1] + 1) if len(changes) else (-1, 0)
    rows = distance_rows[np.clip(np.arange(lowest, highest + 1), 0, None)].astype(np.int32)
    used = slice(int(rows.min()), int(rows.max()) + 1)
    return Band(int(lowest) - (keys - 1), rows - rows.min()), used


def _aligned(rows_RHD):
    return jnp.pad(rows_RHD, ((0, -len(rows_RHD) % ALIGNMENT), (0, 0), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(setup, operands, constants):
    return _attend_forward(setup, operands, constants)[0]


def _attend_forward(setup, operands, constants):
    refs = _refs(setup, operands, constants)
    refs["query_bounds"] = _bounds(setup, setup.forward, constants, True)
    # A remat policy that saves what is named "attention" keeps the kernel from running twice.
    output_BQHD, log_sum_BHQ = (checkpoint_name(x, "attention") for x in forward(refs, setup))
    return output_BQHD, (operands, constants, output_BQHD, log_sum_BHQ)


def _attend_backward(setup, residuals, d_output_BQHD):
    operands, constants, output_BQHD, log_sum_BHQ = residuals
    delta_BHQ = _product("BQHD,BQHD->BHQ", output_BQHD, d_output_BQHD)
    refs = _refs(setup, operands, constants)
    refs |= {"d_output": d_output_BQHD, "log_sum": log_sum_BHQ, "delta": delta_BHQ}
    refs["query_bounds"] = _bounds(setup, setup.backward, constants, True)
    refs["key_bounds"] = _bounds(setup, setup.backward, constants, False)
    gradients = backward(refs, setup)
    for table, tokens in (("c2p", "query"), ("p2c", "key")):
        if table in operands:
            band_HBLW = gradients[table].astype(operands[table].dtype)
            d_tokens_BLHD, gradients[table] = _through_band(
                setup, band_HBLW, operands[tokens], operands[table]
            )
            gradients[tokens] += d_tokens_BLHD
    gradients = {name: gradients[name].astype(operands[name].dtype) for name in operands}
    return gradients, None


_attend.defvjp(_attend_forward, _attend_backward)


def _refs(setup, operands, constants):
    """What the kernels read: the tables take the place of the relative rows."""
    refs = {**operands, **constants}
    for table, tokens in (("c2p", "query"), ("p2c", "key")):
        if table in operands:
            product = _product("BLHD,RHD->HBLR", operands[tokens], operands[table])
            refs[table] = product.astype(operands[table].dtype)
    return refs


def _through_band(setup, band_HBLW, tokens_BLHD, rows_RHD):
    """Gradients of tokens and of relative rows from a band of their products' gradients."""
    slots = np.full(setup.band.padded_width, -1, np.int32)
    slots[: setup.band.width] = setup.band.rows
    one_hot_WR = (slots[:, None] == jnp.arange(len(rows_RHD))).astype(rows_RHD.dtype)
    expanded_WHD = _product("WR,RHD->WHD", one_hot_WR, rows_RHD, jax.lax.Precision.HIGHEST)
    d_tokens_BLHD = _product("HBLW,WHD->BLHD", band_HBLW, expanded_WHD.astype(rows_RHD.dtype))
    d_expanded_WHD = _product("HBLW,BLHD->WHD", band_HBLW, tokens_BLHD)
    d_rows_RHD = _product(
        "WR,WHD->RHD", one_hot_WR.astype(jnp.float32), d_expanded_WHD, jax.lax.Precision.HIGHEST
    )
    return d_tokens_BLHD * setup.scale, d_rows_RHD * setup.scale


def _product(formula, a, b, precision=None):
    return jnp.einsum(formula, a, b, precision=precision, preferred_element_type=jnp.float32)


def _bounds(setup, tile, constants, rows_are_queries):
    """Which blocks of columns each block of rows walks over: int32 [B, blocks, 4], see `sweep`."""
    sides = ("query", "key") if rows_are_queries else ("key", "query")
    (row_segments, row_positions), (column_segments, column_positions) = (
        (_segment_range(constants, side, size), _position_range(constants, side, size))
        for side, size in zip(sides, tile[:2], strict=True)
    )
    meet = (row_segments[0][:, :, None] <= column_segments[1][:, None]) & (
        row_segments[1][:, :, None] >= column_segments[0][:, None]
    )
    least = row_positions[0][:, :, None] - column_positions[1][:, None]  # of a row - of a column
    greatest = row_positions[1][:, :, None] - column_positions[0][:, None]
    if setup.causal:
        meet &= (greatest if rows_are_queries else -least) >= 0
    some, count = jnp.any(meet, axis=2), meet.shape[2]
    first = jnp.where(some, jnp.argmax(meet, axis=2), 0)
    end = jnp.where(some, count - jnp.argmax(meet[:, :, ::-1], axis=2), 0)
    near, far = first, end
    # A key's queries may come in any order, if they are not all there: then all count as near.
    if setup.band is not None and (setup.in_order or rows_are_queries):
        ends = (setup.band.lowest, setup.band.highest)
        low, high = ends if rows_are_queries else (-ends[1], -ends[0])
        near = jnp.clip(jnp.sum(least >= high, axis=2), first, end)
        far = jnp.clip(count - jnp.sum(greatest <= low, axis=2), near, end)
    return jnp.stack([x.astype(jnp.int32) for x in (first, near, far, end)], axis=2)


def _segment_range(constants, side, size):
    """The least and the greatest segment of each block, [B, blocks]; padding counts as none."""
    blocks = _blocks(constants[f"{side}_segments"], size, mode="constant")
    none = jnp.iinfo(jnp.int32).max
    return jnp.min(jnp.where(blocks > 0, blocks, none), axis=2), jnp.max(blocks, axis=2)


def _position_range(constants, side, size):
    """The least and the greatest position of each block, [B, blocks] or [1, blocks]."""
    positions = jnp.arange(constants[f"{side}_segments"].shape[1], dtype=jnp.int32)[None]
    if side == "query":
        positions = constants.get("query_positions", positions)
    blocks = _blocks(positions, size, mode="edge")
    return jnp.min(blocks, axis=2), jnp.max(blocks, axis=2)


def _blocks(tokens_BL, size, mode):
    padded = jnp.pad(tokens_BL, ((0, 0), (0, -tokens_BL.shape[1] % size)), mode=mode)
    return padded.reshape(padded.shape[0], -1, size)


IMPLEMENTATION = Implementation(
    "gpu", attention, supports, fuses=frozenset({"dropout", "positions"})
)
