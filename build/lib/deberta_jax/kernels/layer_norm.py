"""LayerNorm with its derivative written out, in as few passes over the activations as it takes.

Derived by the compiler, the backward pass of one LayerNorm goes five times over its input and its
gradient, each time for one sum that the others could have shared: a twelfth of a training step.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis.

    Statistics are taken in float32 at least. A remat policy that saves what is named "layer_norm"
    keeps them, and x, from being computed twice.

    Args:
        x: [..., E].
        scale, bias: float32 [E].
        epsilon: added to the variance.

    Returns:
        [..., E] in the type of x.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    x = checkpoint_name(x, "layer_norm")
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, variance = _statistics(wide, one_pass=wide.dtype != x.dtype)
    inverse = jax.lax.rsqrt(variance + epsilon)
    mean, inverse = (checkpoint_name(y, "layer_norm") for y in (mean, inverse))
    y = (wide - mean[..., None]) * inverse[..., None] * scale + bias
    return y.astype(x.dtype), (x, mean, inverse, scale)


def _statistics(x, one_pass):
    """Mean and variance of the last axis.

    E[x^2] - E[x]^2 takes one pass but cancels. Where x comes from a narrower type, that is less
    than what its rounding did: (mean / deviation)^2 2^-24 of the variance, where bfloat16 has
    moved every number by (mean / deviation) 2^-9 deviations.
    """
    mean = jnp.mean(x, axis=-1)
    if one_pass:
        variance = jnp.mean(jnp.square(x), axis=-1) - jnp.square(mean)
        return mean, jnp.maximum(variance, 0)
    return mean, jnp.mean(jnp.square(x - mean[..., None]), axis=-1)


def _backward(epsilon, residuals, gradient):
    del epsilon
    x, mean, inverse, scale = residuals
    wide = gradient.astype(mean.dtype)
    normal = (x.astype(mean.dtype) - mean[..., None]) * inverse[..., None]
    scaled = wide * scale
    along = jnp.mean(scaled * normal, axis=-1, keepdims=True)
    level = jnp.mean(scaled, axis=-1, keepdims=True)
    d_x = (scaled - level - normal * along) * inverse[..., None]
    above = tuple(range(x.ndim - 1))
    d_scale = jnp.sum(wide * normal, axis=above).astype(scale.dtype)
    return d_x.astype(x.dtype), d_scale, jnp.sum(wide, axis=above).astype(scale.dtype)


layer_norm.defvjp(_forward, _backward)
