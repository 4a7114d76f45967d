"""What both fused functions make of their arguments before a kernel sees them."""

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.kernels.tpu.blocks import distance_rows


def seeds(rng, first):
    """int32 [4]: two random words, the first item, the first head."""
    words = jnp.zeros(2, jnp.int32)
    if rng is not None:
        words = jax.lax.bitcast_convert_type(jax.random.bits(rng, (2,), jnp.uint32), jnp.int32)
    return jnp.concatenate([words, jnp.stack([jnp.int32(x) for x in first])])


def pad(x, length):
    missing = length - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def tables(relative, blocks, dtype):
    """[H, D, W] for each term: relative rows -> a column for every distance of `blocks`.

    A matmul against a constant: a gather by another name, at a hundredth of the layer's FLOPs.
    """

    def table(rows_RHD, distances, factor):
        rows = distance_rows(relative, distances)
        one_hot_RW = jnp.asarray(np.arange(rows_RHD.shape[0])[:, None] == rows, dtype)
        precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
        rows_RHD = (rows_RHD * factor).astype(dtype)
        return jnp.einsum("RHD,RW->HDW", rows_RHD, one_hot_RW, precision=precision)

    return (
        table(relative.key_RHD, -blocks.distances, 1) if blocks.c2p else None,
        table(relative.query_RHD, blocks.distances, blocks.scale) if blocks.p2c else None,
    )
