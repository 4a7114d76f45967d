"""Dropout of hidden states: how often, how independent, and the same on every mesh."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.model.dropout import Dropout, keep
from tests.devices import on_eight_devices

SHAPE = (16, 256, 192)


def signs(seed, rate):
    """Kept or dropped, less its mean, over its deviation."""
    kept = np.asarray(keep(jax.random.key(seed), rate, SHAPE), np.float64)
    return (kept - (1 - rate)) / np.sqrt(rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_every_place_is_as_likely_and_independent(seed, rate):
    """Sums of n independent signs are within five of their deviations, sqrt(n)."""
    drawn = signs(seed, rate)
    for axes in ((0, 1, 2), (0, 1), (1, 2), (0, 2)):
        count = np.prod([SHAPE[axis] for axis in axes])
        assert np.abs(drawn.sum(axes) / np.sqrt(count)).max() < 5.5
    for axis in range(3):
        for shift in (1, 2, 3, 8):
            ahead, behind = (np.take(drawn, range(*part), axis) for part in (
                (shift, SHAPE[axis]), (0, SHAPE[axis] - shift),
            ))  # fmt: skip
            assert abs((ahead * behind).sum() / np.sqrt(ahead.size)) < 5.5
    other = signs(seed + 1, rate)
    assert abs((drawn * other).sum() / np.sqrt(drawn.size)) < 5.5


def test_what_is_kept_is_scaled_and_gradients_go_through_it_alone(seed):
    module, x = Dropout(0.25), np.random.default_rng(seed).normal(size=(4, 8, 16))
    x = jnp.asarray(x, jnp.float32)
    rngs = {"dropout": jax.random.key(seed)}

    def apply(x):
        return module.apply({}, x, deterministic=False, rngs=rngs)

    found = np.asarray(apply(x))
    kept = found != 0
    np.testing.assert_allclose(found[kept], np.asarray(x)[kept] / 0.75, rtol=1e-6)
    assert 0.6 < kept.mean() < 0.9
    gradient = jax.grad(lambda x: apply(x).sum())(x)
    np.testing.assert_allclose(gradient, kept / 0.75, rtol=1e-6)
    for off in (module.apply({}, x, deterministic=True), Dropout(0.0, False).apply({}, x)):
        np.testing.assert_array_equal(off, x)


def test_two_calls_draw_other_places(seed):
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Dropout(0.5, False)(x), Dropout(0.5, False)(x)

    first, second = Twice().apply({}, jnp.ones((64, 64)), rngs={"dropout": jax.random.key(seed)})
    assert 0.4 < (np.asarray(first) == np.asarray(second)).mean() < 0.6


def check_split(seed):
    """Each of eight devices drops its part of the whole as one device drops the whole."""
    from jax.sharding import NamedSharding, PartitionSpec

    from deberta_jax.parallel.mesh import MeshConfig, make_mesh

    mesh = make_mesh(MeshConfig(2, 2, 2))
    layout = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    x, key = jnp.ones(SHAPE), jax.random.key(int(seed))

    def drop(x):
        return Dropout(0.1, False).apply({}, x, rngs={"dropout": key})

    split = jax.jit(drop, in_shardings=layout, out_shardings=layout)
    np.testing.assert_array_equal(split(x), drop(x))
    text = split.lower(x).compile().as_text()
    assert "u32[4,256,96]" in text and "u32[16,256" not in text
    for collective in ("all-gather", "all-reduce", "collective-permute", "all-to-all"):
        assert collective not in text


def test_a_device_makes_its_own_bits_and_they_are_those_of_the_whole(seed):
    on_eight_devices(check_split, seed)
