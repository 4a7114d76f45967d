"""What both passes do with one tile in VMEM.

Everything is held head size first: queries, keys, values and outputs as [D, L], scores as
[keys, queries]. Softmax statistics are then rows, reduced without crossing lanes; heads are slices
that cost nothing whatever their size; and the products with probabilities stream D rows through
the matrix unit, which fills it where streaming the probabilities would leave half idle (D = 64).
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Int

from deberta_jax.kernels.tpu.blocks import TILE, Blocks

# A reference to a block in VMEM or SMEM: Pallas has no public type of it. Where the term that it is
# of is off, there is None in its stead.
Ref = Any
# What `pl.ds` returns.
Window = slice | pl.Slice

# Scores of what is not seen, and a floor of the running maximum that lies above them: so exp2 of
# one less the other is 0 even where nothing is seen at all.
UNSEEN, FLOOR = -1e30, -1e29

_SUBLANES = 8


class InOrder:
    """A reference to numbers in SMEM, in one row, read as if it had more axes.

    With more axes every last one would be padded to 128 numbers: half a kilobyte an item, of a
    megabyte in all.
    """

    def __init__(self, ref: Ref, *sizes: Array | int):
        """`sizes`: of the axes after the first."""
        self._ref, self._sizes = ref, sizes

    def __getitem__(self, index: tuple[Array | int, ...]) -> Array:
        position, *rest = index
        for size, step in zip(self._sizes, rest, strict=True):
            position = position * size + step
        return self._ref[position]


def product(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    """Float32 product over the axes `contract` of the two."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(
        left, right, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def fold(tiles: Sequence[Array], blocks: Blocks) -> Array:
    """Two heads as bfloat16 halves of one word: one rotation or transpose then moves both."""
    if blocks.heads == 1:
        return tiles[0]
    if blocks.interpret:  # which lacks the packing instruction
        low, high = (_bits(tile.astype(jnp.bfloat16).astype(jnp.float32)) for tile in tiles)
        return _shift_right(low, 16) | high
    return pltpu.pack_elementwise(tiles, packed_dtype=jnp.bfloat16)


def unfold(folded: Array, head: int, blocks: Blocks) -> Array:
    """The float32 tile of one head."""
    if blocks.heads == 1:
        return folded
    word = folded << 16 if head == 0 else folded & np.int32(-(2**16))
    return jax.lax.bitcast_convert_type(word, jnp.float32)


def _bits(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def skew(tile: Array, blocks: Blocks) -> Array:
    """out[t, s] = tile[t, TILE - 1 - t + s]: a window's columns -> the tokens of a block."""
    if blocks.strided:
        width = tile.shape[1]
        turned = pltpu.roll(tile, width - (TILE - 1), 1, stride=1, stride_axis=0)
        return turned[:, : blocks.block]
    row, lane = (jax.lax.broadcasted_iota(jnp.int32, (TILE, TILE), axis) for axis in (0, 1))
    parts = [
        jnp.where(lane <= row, *pair)
        for pair in itertools.pairwise(_turn(tile, lane + TILE - 1 - row))
    ]
    return jnp.concatenate(parts, axis=1)


def unskew(tile: Array) -> Array:
    """The transpose of `skew`: out[t, TILE - 1 - t + s] = tile[t, s], zero elsewhere."""
    row, lane = (jax.lax.broadcasted_iota(jnp.int32, (TILE, TILE), axis) for axis in (0, 1))
    zero = jnp.zeros((TILE, TILE), tile.dtype)
    turned = [zero, *_turn(tile, lane - (TILE - 1) + row), zero]
    moved = lane >= TILE - 1 - row
    parts = [jnp.where(moved, new, old) for old, new in itertools.pairwise(turned)]
    return jnp.concatenate(parts, axis=1)


def _turn(tile: Array, lanes: Array) -> list[Array]:
    """Every register of the tile with its lanes turned, by another amount in every row."""
    return [
        jnp.take_along_axis(
            tile[:, start : start + TILE], lanes & (TILE - 1), axis=1, mode="promise_in_bounds"
        )
        for start in range(0, tile.shape[1], TILE)
    ]


def visible(
    blocks: Blocks,
    query_segments_1Q: Int[Array, "1 Q"],
    key_segments_1K: Int[Array, "1 K"],
    query_start: Array,
    key_start: Array,
) -> Bool[Array, "K Q"]:
    """bool [K, Q]: same document, no padding, and no later key where attention is causal."""
    keys, queries = key_segments_1K.shape[1], query_segments_1Q.shape[1]
    key_column = jnp.broadcast_to(key_segments_1K, (TILE, keys)).T
    same = [
        key_column == query_segments_1Q[:, start : start + TILE]
        for start in range(0, queries, TILE)
    ]
    seen = jnp.concatenate(same, axis=1)
    if blocks.causal:
        key = key_start + jax.lax.broadcasted_iota(jnp.int32, (keys, queries), 0)
        query = query_start + jax.lax.broadcasted_iota(jnp.int32, (keys, queries), 1)
        seen &= key <= query
    return seen


class Draw(NamedTuple):
    """What dropout depends on beside queries and keys: the seeds, the item, the first head."""

    seeds: Ref
    item: Array
    first_head: Array


def kept(
    blocks: Blocks,
    draw: Draw,
    query_start: Array,
    key_start: Array,
    shape: tuple[int, int],
) -> list[Bool[Array, "K Q"]]:
    """The probabilities that dropout leaves of each head of the cell, for (keys, queries) `shape`.

    A pure function of (seed, item, head, query, key), whatever the blocks and the mesh, so both
    passes and every sharding drop the same. Two heads share the 32 bits of one hash.
    """
    (keys, queries), seeds = shape, draw.seeds
    pair = (seeds[3] + draw.first_head) >> 1
    item = _mix(seeds[0] + (seeds[2] + draw.item) * np.int32(-1640531535))
    item = _mix(item + seeds[1] + pair * np.int32(-2048144777))
    key = key_start + jax.lax.broadcasted_iota(jnp.int32, (keys, TILE), 0)
    query = query_start + jax.lax.broadcasted_iota(jnp.int32, (_SUBLANES, queries), 1)
    key, query = _mix(key ^ item), _mix(query * np.int32(-1028477387) - item)
    words = jnp.concatenate(
        [key + query[:1, start : start + TILE] for start in range(0, queries, TILE)], axis=1
    )
    words = (words ^ _shift_right(words, 16)) * np.int32(0x2C1B3C6D)
    words ^= _shift_right(words, 15)
    threshold = round(blocks.rate * 2**16)
    if blocks.heads == 2:
        return [(words & 0xFFFF) >= threshold, _shift_right(words, 16) >= threshold]
    half = 16 * ((seeds[3] + draw.first_head) & 1)
    return [(_shift_right(words, half) & 0xFFFF) >= threshold]


def _mix(x: Array) -> Array:
    """Avalanches 32 bits (the `lowbias32` finaliser)."""
    x = (x ^ _shift_right(x, 16)) * np.int32(0x7FEB352D)
    x = (x ^ _shift_right(x, 15)) * np.int32(-2073254261)
    return x ^ _shift_right(x, 16)


def _shift_right(x: Array, bits: Array | int) -> Array:
    return jax.lax.shift_right_logical(x, jnp.broadcast_to(jnp.int32(bits), jnp.shape(x)))
