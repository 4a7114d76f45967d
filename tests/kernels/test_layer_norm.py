"""LayerNorm with its own derivative, against Flax's, which the compiler derives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.kernels.layer_norm import layer_norm

EPSILON = 1e-7


def flax_norm(x, scale, bias):
    """In float64, from x as it is."""
    norm = nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False, dtype=jnp.float64)
    return norm.apply({"params": {"scale": scale, "bias": bias}}, x.astype(jnp.float64))


# How far a number may be off, of the largest: a few roundings of its type.
@pytest.mark.parametrize(
    ("dtype", "off"), [("float64", 1e-13), ("float32", 2e-6), ("bfloat16", 0.02)]
)
@pytest.mark.parametrize("mean", [0.0, 3.0, 100.0])
def test_values_and_gradients_are_those_of_flax(dtype, off, mean, seed):
    if dtype == "bfloat16" and mean > 10:
        pytest.skip("bfloat16 itself rounds such numbers to a third of their deviation")
    rng = np.random.default_rng(seed)
    x, cotangent = (rng.normal(size=(3, 40, 96)) for _ in range(2))
    with jax.enable_x64(True):
        x = jnp.asarray(mean + x * rng.uniform(0.5, 2, (3, 40, 1)), dtype)
        cotangent = jnp.asarray(cotangent, dtype)
        scale, bias = (jnp.asarray(rng.normal(size=96), jnp.float32) for _ in range(2))
        got, pull = jax.vjp(lambda *a: layer_norm(*a, EPSILON), x, scale, bias)
        want, pull_flax = jax.vjp(flax_norm, x, scale, bias)
        assert got.dtype == x.dtype
        pairs = [(got, want)]
        pairs += zip(pull(cotangent), pull_flax(cotangent.astype(jnp.float64)), strict=True)
        # A mean far from zero costs digits of x - mean, in Flax's as well.
        tolerance = off * (1 + mean)
        for one, other in pairs:
            one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
            np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max(), rtol=0)


def test_a_constant_row_stays_finite(seed):
    x = jnp.full((2, 64), np.random.default_rng(seed).normal() * 100, jnp.bfloat16)
    y, pull = jax.vjp(lambda x: layer_norm(x, jnp.ones(64), jnp.zeros(64), EPSILON), x)
    assert np.isfinite(np.asarray(y, np.float32)).all()
    assert np.isfinite(np.asarray(pull(jnp.ones_like(y))[0], np.float32)).all()
