"""Dropout of attention probabilities: bits from a hash of where a probability stands.

Each block of the scores makes its own bits, in the forward and again in the backward pass, whatever
the blocks are; and the hash costs next to nothing beside `jax.random.bernoulli`, which on a CPU
takes longer than the softmax.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt


def seeds(
    rng: jax.Array, heads: int, batch: int, first: tuple[jax.Array | int, jax.Array | int] = (0, 0)
) -> UInt[Array, "H 2 B"]:
    """What sets the bits of one head of one item apart from all others.

    A hash of the head and the item, so that a part of a batch, which knows its `first` item and
    head of the whole, has the bits that it has in the whole.
    """
    words_211 = jax.random.bits(rng, (2, 1, 1), jnp.uint32)
    item_B, head_H = (
        jnp.asarray(start, jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
        for start, count in zip(first, (batch, heads), strict=True)
    )
    return mix(mix(words_211 + item_B) ^ head_H[:, None]).swapaxes(0, 1)


def keep(
    seeds_H2B: UInt[Array, "H 2 B"],
    rate: float,
    first_query: jax.Array | int,
    queries: int,
    keys: int,
) -> Bool[Array, "H B Q K"]:
    """True with probability 1 - `rate` (to within 2^-32)."""
    query = jnp.asarray(first_query, jnp.uint32) + jnp.arange(queries, dtype=jnp.uint32)
    # A stride that is the same for every length: padding of the keys changes no bit.
    index_QK = query[:, None] * np.uint32(2**16) + jnp.arange(keys, dtype=jnp.uint32)
    first, second = seeds_H2B.swapaxes(0, 1)[..., None, None]
    bits_HBQK = mix(mix(index_QK ^ first) + second)
    return bits_HBQK >= np.uint32(round(rate * 2**32))


def mix(x, salt=None):
    """A bijection of 32 bits whose every output bit depends on every input bit.

    With a `salt` (32 bits) it is another bijection for each: the salt enters between its halves.
    Source: C. Wellons, "Prospecting for Hash Functions" (lowbias32), 2018.
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    if salt is not None:
        x = x ^ salt
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
