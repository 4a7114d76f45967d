import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.model.layers import gelu


def test_gelu_in_bfloat16_is_the_exact_one_but_for_rounding():
    """Value and slope, over the range where they bend and far outside it."""
    x = jnp.concatenate([jnp.linspace(-9, 9, 20001), jnp.asarray([-300.0, 300.0])])
    x = x.astype(jnp.bfloat16)

    def exact(x):
        return jax.nn.gelu(x.astype(jnp.float32), approximate=False)

    def slope(function):
        return jax.jit(jax.grad(lambda x: jnp.sum(function(x).astype(jnp.float32))))(x)

    for got, want in ((jax.jit(gelu)(x), exact(x)), (slope(gelu), slope(exact))):
        got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
        np.testing.assert_allclose(got, want, rtol=2**-7, atol=1.5e-4)


def test_gelu_in_float32_is_exact():
    x = jnp.linspace(-6, 6, 1001)
    np.testing.assert_array_equal(gelu(x), jax.nn.gelu(x, approximate=False))
