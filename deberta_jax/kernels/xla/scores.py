"""The relative terms of a block of queries against every key, in plain XLA without a gather.

delta(i, j) depends on i - j alone, so each term is a Toeplitz product: one matmul against the
relative rows expanded to distances, then a skew, which is only a reshape. Beyond some distance all
share one row: there a term is one number a query (c2p) or a key (p2c), and costs no matmul.

Arrays are heads first: one relative table serves the whole batch of a head. A block of T queries is
near N keys, and `rows_HWD` holds the relative row of each distance from -(N - 1) to N - 1.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def reach(distance_rows: np.ndarray) -> int:
    """The distance from which on, on both sides, all distances read one row."""
    changes = np.flatnonzero(np.diff(distance_rows))
    middle = len(distance_rows) // 2
    return int(max(middle - changes[0], changes[-1] + 1 - middle)) if len(changes) else 0


def c2p(
    query_HBTD: Float[Array, "H B T D"],
    rows_HWD: Float[Array, "H W D"],
    start: Array | int,
    keys: int,
    tile: int,
) -> Float[Array, "H B T K"]:
    """Qc_i . Kr_delta(i, j) of the queries at `start`, `start` + 1, ...: [H, B, T, keys].

    Args:
        query_HBTD: a block of queries.
        rows_HWD: relative keys by distance.
        start: position of the first query.
        keys: number of keys.
        tile: queries that share a window of rows; it divides T.
    """
    block = query_HBTD.shape[2]
    first, near, window_HWD = _near(rows_HWD, start, block, keys)
    scores = toeplitz(query_HBTD, window_HWD[:, ::-1], tile)
    if near == keys:
        return scores
    right, left = jnp.split(dot(query_HBTD, _edges(rows_HWD, query_HBTD)), 2, axis=-1)
    beyond = jnp.where(jnp.arange(keys) < first, left, right)
    return jax.lax.dynamic_update_slice_in_dim(beyond, scores, first, axis=3)


def p2c(
    key_HBKD: Float[Array, "H B K D"],
    rows_HWD: Float[Array, "H W D"],
    start: Array | int,
    block: int,
    tile: int,
) -> Float[Array, "H B Q K"]:
    """Qr_delta(i, j) . Kc_j of the `block` positions from `start` on: [H, B, block, K].

    `rows_HWD` are relative queries by distance; the others are as for `c2p`, of keys.
    """
    keys = key_HBKD.shape[2]
    first, near, window_HWD = _near(rows_HWD, start, block, keys)
    if near == keys:
        return toeplitz(key_HBKD, window_HWD, tile).swapaxes(-1, -2)
    near_HBND = jax.lax.dynamic_slice_in_dim(key_HBKD, first, near, axis=2)
    scores = toeplitz(near_HBND, window_HWD, tile).swapaxes(-1, -2)
    right, left = jnp.split(dot(_edges(rows_HWD, key_HBKD), key_HBKD), 2, axis=-2)
    beyond = jnp.where(jnp.arange(keys) < first, left, right)
    beyond = jnp.broadcast_to(beyond, (*beyond.shape[:2], block, keys))
    return jax.lax.dynamic_update_slice_in_dim(beyond, scores, first, axis=3)


def c2p_anywhere(query_HBQD, rows_HWD, positions_BQ):
    """`c2p` of queries at arbitrary positions, where every key is near: [H, B, Q, N]."""
    heads, batch, queries, size = query_HBQD.shape
    keys = (rows_HWD.shape[1] + 1) // 2
    flat_HQD = query_HBQD.reshape(heads, batch * queries, size)
    table_HQW = dot(flat_HQD, rows_HWD[:, ::-1])  # descending in distance: keys left to right
    table_HBQW = table_HQW.reshape(heads, batch, queries, -1)
    return _shift(table_HBQW, keys - 1 - positions_BQ[..., None], keys)


def p2c_anywhere(
    key_HBKD: Float[Array, "H B K D"],
    rows_HWD: Float[Array, "H W D"],
    positions_BQ: Int[Array, "B Q"],
    block: int,
    tile: int,
) -> Float[Array, "H B Q K"]:
    """`p2c` of queries at arbitrary positions: [H, B, Q, K], block by block."""

    @jax.checkpoint
    def from_block(start):
        block_positions = start + jnp.arange(block)
        one_hot_BQT = (positions_BQ[..., None] == block_positions).astype(key_HBKD.dtype)
        scores_HBTK = p2c(key_HBKD, rows_HWD, start, block, tile).astype(key_HBKD.dtype)
        exact = jax.lax.Precision.HIGHEST
        return jnp.einsum("BQT,HBTK->HBQK", one_hot_BQT, scores_HBTK, precision=exact)

    keys = key_HBKD.shape[2]
    if block == keys:
        return from_block(0)
    starts = jnp.arange(0, keys, block)
    shape = (*key_HBKD.shape[:2], positions_BQ.shape[1], keys)
    zeros = jnp.zeros(shape, key_HBKD.dtype)
    return jax.lax.scan(lambda total, start: (total + from_block(start), None), zeros, starts)[0]


def toeplitz(
    x_HBND: Float[Array, "H B N D"], rows_HWD: Float[Array, "H W D"], tile: int
) -> Float[Array, "H B N M"]:
    """out[h, b, n, m] = x[h, b, n] . rows[h, N - 1 - n + m]: [H, B, N, W - N + 1].

    By tiles of tokens, each against the rows that it can reach: about half the work of every token
    against every row where there are as many n as m.
    """
    heads, batch, length, size = x_HBND.shape
    tiles, width = length // tile, rows_HWD.shape[1] - length + 1
    starts = range(length - tile, -1, -tile)
    rows_HWD = jnp.pad(rows_HWD, [(0, 0), (0, 1), (0, 0)])  # `skew` wants a column more
    windows_HCWD = jnp.stack([rows_HWD[:, s : s + tile + width] for s in starts], axis=1)
    tiled_HCBTD = x_HBND.reshape(heads, batch, tiles, tile, size).swapaxes(1, 2)
    table_HCTW = dot(tiled_HCBTD.reshape(heads, tiles, batch * tile, size), windows_HCWD)
    table_HCBTW = table_HCTW.reshape(heads, tiles, batch, tile, tile + width)
    return skew(table_HCBTW, width).swapaxes(1, 2).reshape(heads, batch, length, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def skew(table, length):
    """Reads row t from column (rows - 1 - t) on: out[..., t, s] = table[..., t, rows - 1 - t + s].

    Args:
        table: [..., rows, rows + length]; the last column is not read.
        length: columns of the result.

    Returns:
        [..., rows, length], by reshapes alone: each row of the flat array starts one later.
    """
    *lead, rows, width = table.shape
    flat = table.reshape(*lead, rows * width)
    flat = jax.lax.slice_in_dim(flat, rows - 1, rows - 1 + rows * (width - 1), axis=-1)
    return flat.reshape(*lead, rows, width - 1)[..., :length]


def _skew_backward(length, _, gradient):
    """The same reshapes the other way; the zeros before a row's gradient end the row above it."""
    *lead, rows, _ = gradient.shape
    # A pad fused into the slice would divide to find the index of every number.
    padding = ((0, 0), (0, 1), (rows - 1, 0))
    tiles = gradient.reshape(-1, rows, length)
    padded = once(lambda part: jnp.pad(part, padding), tiles)
    flat = padded.reshape(*lead, -1)[..., : rows * (rows + length)]
    return (flat.reshape(*lead, rows, rows + length),)


skew.defvjp(lambda table, length: (skew(table, length), None), _skew_backward)


def once(function, *arrays):
    """`function`, elementwise or by the items of the first axis, of arrays that agree in it.

    It runs in a loop over a few parts, into which XLA fuses none of the result's readers: each
    would otherwise make it again, the transposed ones a number at a time.
    """
    length = arrays[0].shape[0]
    parts = math.gcd(length, 4)
    stacked = [x.reshape(parts, length // parts, *x.shape[1:]) for x in arrays]
    result = jax.lax.map(lambda part: function(*part), stacked)
    return result.reshape(length, *result.shape[2:])


@jax.custom_vjp
def dot(x, y):
    """[..., N, D] by [..., M, D] -> [..., N, M], summed in float32 or wider.

    Its gradients are multiplied in the order that needs no transpose of anything [.., N, M]: XLA
    for CPUs would copy it, at several times the cost of the matmul.
    """
    return jnp.einsum("...ND,...MD->...NM", x, y, preferred_element_type=sum_type(x))


def _dot_backward(operands, gradient):
    x, y = operands
    gradient = gradient.astype(x.dtype)
    total = sum_type(x)
    dx = jnp.einsum("...NM,...MD->...ND", gradient, y, preferred_element_type=total)
    dy = jnp.einsum("...ND,...NM->...DM", x, gradient, preferred_element_type=total)
    return dx.astype(x.dtype), dy.swapaxes(-1, -2).astype(y.dtype)


dot.defvjp(lambda x, y: (dot(x, y), (x, y)), _dot_backward)


def sum_type(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _near(rows_HWD, start, block, keys):
    """(first near key, number of near keys, rows of the distances between block and them).

    The rows ascend in distance, from that of the block's first query and the last near key.
    """
    near = (rows_HWD.shape[1] + 1) // 2
    if near == block:  # the whole sequence: nothing to slice
        return 0, near, rows_HWD
    first = jnp.clip(start - (near - block) // 2, 0, keys - near)
    window = jax.lax.dynamic_slice_in_dim(rows_HWD, start - first, block + near - 1, axis=1)
    return first, near, window


def _edges(rows_HWD, x_HBND):
    """The rows of the far right and of the far left, for every item of the batch: [H, B, 2, D]."""
    edges_HED = jnp.stack([rows_HWD[:, 0], rows_HWD[:, -1]], axis=1)[:, None]
    return jnp.broadcast_to(edges_HED, (*x_HBND.shape[:2], 2, x_HBND.shape[3]))


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
