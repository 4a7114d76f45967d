"""Dropout of hidden states: bits from a hash of where a number stands.

A hash needs no generator's state: every device makes the bits of its own part, the same on every
mesh, and a fused loop makes them where they are used. Of the generators of `jax.random`, "rbg" has
every device make the bits of the whole batch, tens of GiB on a pod, and on a CPU both it and
"threefry2x32" take some thirty times as long.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.kernels.xla.dropout import mix


class Dropout(nn.Module):
    """Zeroes a share of `rate` of the numbers and divides the others by 1 - `rate`.

    It draws from the rng named "dropout"; `deterministic`, told here or in the call, turns it off.
    """

    rate: float
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x, deterministic: bool | None = None):
        off = nn.merge_param("deterministic", self.deterministic, deterministic)
        if off or self.rate == 0:
            return x
        return jnp.where(keep(self.make_rng("dropout"), self.rate, x.shape), x / (1 - self.rate), 0)


def keep(rng, rate: float, shape):
    """bool of `shape`: True with probability 1 - `rate` (to within 2^-32).

    A row hashes to 64 bits, which its columns share, so that no two rows walk through the same
    sequence.
    """
    *above, columns = range(len(shape))
    row = jnp.zeros((*shape[:-1], 1), jnp.uint32)
    for axis in above:
        place = jax.lax.broadcasted_iota(jnp.uint32, row.shape, axis)
        row = row * np.uint32(shape[axis]) + place
    first, second = jax.random.bits(rng, (2,), jnp.uint32)
    start = mix(row ^ first)
    salt = mix(start + second)
    column = jax.lax.broadcasted_iota(jnp.uint32, shape, columns)
    # The golden ratio's multiples, which fill the 32 bits evenly.
    bits = mix(start + column * np.uint32(0x9E3779B9), salt)
    return bits >= np.uint32(round(rate * 2**32))
