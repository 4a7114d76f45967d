"""What the forward and the backward GPU kernels share: one tile of pairs, and the loop over tiles.

A program owns one block of tokens (its rows) and walks over blocks of the other side (its columns):
queries own keys in the forward pass and in dQ, keys own queries in dK and dV.

Relative positions enter through two tables that are linear in L, c2p[h, b, i, r] = Qc_i . Kr_r and
p2c[h, b, j, r] = Kc_j . Qr_r, computed before the kernel as one matmul each. A tile reads both by
pointer arithmetic along their last axis, p2c transposed, so that neighbouring threads read
neighbouring numbers. Far from the diagonal every distance has the same row: there the bias of a
tile is one number a query plus one a key, and nothing is looked up.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

LOG2_E = float(np.log2(np.e))
ALIGNMENT = 64  # rows of a table, slots of a band: what matrix products like


@dataclasses.dataclass(frozen=True, eq=False)
class Band:
    """The distances around the diagonal; beyond either end, all have the row of that end.

    Attributes:
        lowest: the distance of the first slot; it stands for all below it too.
        rows: int32 [W], the table row of each slot; slots ascend with distance.
    """

    lowest: int
    rows: np.ndarray

    @property
    def width(self):
        return len(self.rows)

    @property
    def highest(self):
        return self.lowest + self.width - 1

    @property
    def padded_width(self):
        """Matrix products want rows that start at aligned addresses."""
        return -(-self.width // ALIGNMENT) * ALIGNMENT

    @property
    def is_identity(self):
        return bool(np.all(self.rows == np.arange(self.width)))


class Tile(typing.NamedTuple):
    """Sizes of a tile, powers of two."""

    rows: int  # tokens that own a program
    columns: int  # tokens on the other side
    warps: int


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """All that is known when a kernel is compiled.

    Attributes:
        scale: of the scores before the softmax.
        band: None for plain attention.
        causal: whether a query sees no key after its own position.
        in_order: whether query i stands at position i.
        dropout_rate: share of the probabilities dropped.
        forward: tile of the forward pass.
        backward: tile of the backward pass.
        interpret: whether Pallas interprets the kernels instead of compiling them.
    """

    scale: float
    band: Band | None
    causal: bool
    in_order: bool
    dropout_rate: float
    forward: Tile
    backward: Tile
    interpret: bool


class Side(typing.NamedTuple):
    """A block of queries or of keys: int32 vectors of one number a token."""

    start: jax.Array
    indices: jax.Array
    position: jax.Array
    segment: jax.Array
    length: int
    is_queries: bool

    @property
    def slice(self):
        return pl.ds(self.start, len(self.indices))

    @property
    def inside(self):
        return self.indices < self.length


def load_queries(refs, setup, item, block, size):
    side = _load_side(refs["query_segments"], item, block, size, True)
    # Padding must not see padding: on the side of the queries it has a number of its own.
    side = side._replace(segment=jnp.where(side.segment == 0, -1, side.segment))
    if setup.in_order:
        return side
    return side._replace(position=_load_vector(refs["query_positions"].at[item, side.slice], side))


def load_keys(refs, item, block, size):
    return _load_side(refs["key_segments"], item, block, size, False)


def _load_side(segments_ref, item, block, size, is_queries):
    start, length = block * size, segments_ref.shape[1]
    indices = start + jnp.arange(size, dtype=jnp.int32)
    segments = segments_ref.at[item, pl.ds(start, size)]
    segment = plgpu.load(segments, mask=indices < length, other=0)
    return Side(start, indices, indices, segment, length, is_queries)


def _load_vector(ref, side):
    return plgpu.load(ref, mask=side.inside, other=0)


def load_tokens(ref, item, head, side):
    """[block, D] of an array [B, L, H, D], or [block] of one [B, H, L]; zeros past the end."""
    if len(ref.shape) == 3:
        return _load_vector(ref.at[item, head, side.slice], side)
    return plgpu.load(ref.at[item, side.slice, head, :], mask=side.inside[:, None], other=0)


def store_tokens(ref, item, head, side, values):
    """The reverse of `load_tokens`."""
    values = values.astype(ref.dtype)
    if len(ref.shape) == 3:
        plgpu.store(ref.at[item, head, side.slice], values, mask=side.inside)
    else:
        plgpu.store(ref.at[item, side.slice, head, :], values, mask=side.inside[:, None])


def dot(a, b):
    """a b in float32, at JAX's default precision."""
    return jax.lax.dot(a, b, preferred_element_type=jnp.float32)


class Reach(typing.NamedTuple):
    """How far the tokens of a tile are apart: scalars."""

    is_near: jax.Array  # some of its distances lie in the band
    is_low: jax.Array  # else they lie below the band, or above it


def sweep(bounds_ref, setup, item, block, owner_is_queries, step, carry):
    """Runs `carry = step(block, carry, reach)` over the blocks that the program's block sees.

    `bounds_ref` [B, blocks, 4] holds where they start, where the band starts and ends among them,
    and where they end.
    """
    first, near, far, last = (bounds_ref[item, block, n] for n in range(4))

    def body(other_block, carry):
        if setup.band is None:
            return step(other_block, carry, None)
        is_before = other_block < near
        # The distance falls from key to key, and rises from query to query.
        is_low = jnp.logical_not(is_before) if owner_is_queries else is_before
        is_near = jnp.logical_not(is_before) & (other_block < far)
        return step(other_block, carry, Reach(is_near, is_low))

    return jax.lax.fori_loop(first, last, body, carry)


def distances(rows, columns):
    """Position of the query - position of the key, for each pair of a tile."""
    difference = rows.position[:, None] - columns.position[None, :]
    return difference if rows.is_queries else -difference


def tile_scores(refs, setup, item, head, rows, columns, products, reach):
    """Scores in units of log 2, with the relative terms; -inf where the query does not see the key.

    Args:
        refs: whole arrays by name.
        setup: what is known when compiling.
        item: in the batch.
        head: which.
        rows: the side that owns the program.
        columns: the other side.
        products: Qc_i . Kc_j, [rows, columns] in float32.
        reach: see `sweep`.

    Returns:
        [rows, columns] in float32.
    """
    scores = products
    if setup.band is not None:
        scores = jax.lax.cond(
            reach.is_near,
            lambda: _add_near(scores, refs, setup, item, head, rows, columns),
            lambda: _add_far(scores, refs, setup, item, head, rows, columns, reach),
        )
    visible = rows.segment[:, None] == columns.segment[None, :]
    if setup.causal:
        visible &= distances(rows, columns) >= 0
    return jnp.where(visible, scores * (setup.scale * LOG2_E), -jnp.inf)


def _add_near(scores, refs, setup, item, head, rows, columns):
    """Adds the relative terms of each pair by its distance."""
    for side, other in ((rows, columns), (columns, rows)):
        if (name := _table_of(side)) in refs:
            slots = distances(side, other)
            slots = jnp.clip(slots, setup.band.lowest, setup.band.highest) - setup.band.lowest
            terms = _load_table(refs, name, item, head, side.indices[:, None], slots)
            scores += (terms if side is rows else terms.T).astype(jnp.float32)
    return scores


def _add_far(scores, refs, setup, item, head, rows, columns, reach):
    """Adds them where all pairs share a slot: a number a row plus one a column."""
    for side in (rows, columns):
        if (name := _table_of(side)) in refs:
            slots = jnp.full(side.indices.shape, jnp.where(reach.is_low, 0, setup.band.width - 1))
            terms = _load_table(refs, name, item, head, side.indices, slots)
            terms = terms.astype(jnp.float32)
            scores += terms[:, None] if side is rows else terms[None, :]
    return scores


def _table_of(side):
    return "c2p" if side.is_queries else "p2c"


def _load_table(refs, name, item, head, tokens, slots):
    table_rows = plgpu.load(refs["slot_rows"].at[slots]) if "slot_rows" in refs else slots
    # Tokens past the end, which see nothing, read the last one's numbers: cheaper than a mask.
    tokens = jnp.broadcast_to(jnp.minimum(tokens, refs[name].shape[2] - 1), slots.shape)
    return plgpu.load(refs[name].at[head, item, tokens, table_rows])


def kept(refs, setup, item, head, rows, columns):
    """Which pairs of a tile dropout keeps; the same in every pass, whatever the blocks."""
    first_seed, second_seed, first_item, first_head = (refs["seeds"][n] for n in range(4))
    item, head = first_item + item.astype(jnp.uint32), first_head + head.astype(jnp.uint32)
    indices = rows.indices[:, None], columns.indices[None, :]
    queries, keys = indices if rows.is_queries else reversed(indices)
    return keep_pairs((first_seed, second_seed), item, head, queries, keys, setup.dropout_rate)


def keep_pairs(seeds, items, heads, queries, keys, rate):
    """A hash of all arguments decides: which pairs of a query and a key are kept.

    The arrays broadcast together. A query hashes to 64 bits, which its keys share, so that no two
    queries walk through the same sequence. Constants: MurmurHash3's finaliser, the golden ratio.
    """
    items, heads, queries, keys = (x.astype(jnp.uint32) for x in (items, heads, queries, keys))
    start, salt = (_mix(_mix(_mix(seed + items) + heads) + queries) for seed in seeds)
    bits = _mix(start + keys * np.uint32(0x9E3779B9), salt)
    return bits >= np.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(bits, salt=None):
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    if salt is not None:
        bits = bits ^ salt
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
