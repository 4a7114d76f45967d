"""Every implementation, on the same data, against the reference; and that against plain loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import kernels
from deberta_jax.kernels import cpu, gpu, reference, tpu, xla
from deberta_jax.kernels.cpu import build
from deberta_jax.kernels.protocol import AttentionCall, UnsupportedCall
from deberta_jax.kernels.relative import Relative
from deberta_jax.model.positions import relative_rows
from tests.kernels import formula

BUCKETED = dict(span=8, buckets=8, max_relative_positions=16)
LENGTH, SIZE = 40, 32
INTERPRETED = {"interpret": True}
OTHERS = {"xla": (xla, {}), "cpu": (cpu, {}), "tpu": (tpu, INTERPRETED), "gpu": (gpu, INTERPRETED)}


def random_call(seed, queries=None, terms=("c2p", "p2c"), **options):
    """Two documents and padding; `queries` of them at random positions, some repeated."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    segments = np.ones((2, LENGTH), np.int32)
    segments[0, int(rng.integers(5, 30)) :], segments[:, -6:] = 2, 0
    positions, query_segments = None, segments
    if queries:
        positions = rng.integers(0, LENGTH, (2, queries)).astype(np.int32)
        query_segments = np.take_along_axis(segments, positions, axis=1)
    tables = [normal(16, 2, SIZE) if term in terms else None for term in ("c2p", "p2c")]
    return AttentionCall(
        *(normal(2, n, 2, SIZE) for n in (queries or LENGTH, LENGTH, LENGTH)),
        Relative(*tables, relative_rows(np.arange(1 - LENGTH, LENGTH), **BUCKETED)),
        *(jnp.asarray(query_segments), jnp.asarray(segments)),
        None if positions is None else jnp.asarray(positions),
        **options,
    )


def value_and_gradients(attention, call):
    def run(content, tables):
        query, key, value = content
        relative = Relative(*tables, call.relative.distance_rows)
        fields = dict(query_BQHD=query, key_BKHD=key, value_BKHD=value, relative=relative)
        return attention(dataclasses.replace(call, **fields))

    def both(*operands):
        output, pull = jax.vjp(run, *operands)
        return output, pull(jnp.cos(jnp.arange(output.size)).reshape(output.shape))

    return jax.jit(both)(call.content, call.tables)


@pytest.mark.parametrize("queries", [None, 9], ids=["in order", "positions"])
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("name", OTHERS)
def test_it_computes_what_the_reference_does(name, causal, queries, seed):
    module, options = OTHERS[name]
    assert build.problem() is None
    call = random_call(seed, queries, causal=causal)
    if queries and "positions" not in module.IMPLEMENTATION.fuses:
        with pytest.raises(UnsupportedCall, match="queries at positions of their own"):
            module.IMPLEMENTATION.require(call)
        return
    got = value_and_gradients(lambda call: module.attention(call, **options), call)
    want = value_and_gradients(reference.attention, call)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, atol=2e-5 * max(1, float(jnp.max(jnp.abs(w)))))


@pytest.mark.parametrize("name", ["xla", "cpu"])
def test_the_reference_drops_what_they_drop(name, seed):
    call = random_call(seed, dropout_rate=0.3, dropout_rng=jax.random.key(seed))
    got = jax.jit(lambda: OTHERS[name][0].attention(call))()
    np.testing.assert_allclose(got, jax.jit(lambda: reference.attention(call))(), atol=1e-5)


@pytest.mark.parametrize("queries", [None, 9], ids=["in order", "positions"])
@pytest.mark.parametrize("terms", [("c2p", "p2c"), ("c2p",), ("p2c",), ()], ids=str)
def test_the_reference_is_the_formula(terms, queries, seed):
    call = random_call(seed, queries, terms)
    positions = call.query_positions_BQ
    if positions is None:
        positions = np.broadcast_to(np.arange(LENGTH), (2, LENGTH))
    want = formula.attention(
        *(np.asarray(x, np.float64) for x in call.content),
        *(None if x is None else np.asarray(x, np.float64) for x in call.tables),
        lambda i, j: formula.row(i, j, **BUCKETED),
        *map(np.asarray, (*call.segments, positions)),
    )
    np.testing.assert_allclose(reference.attention(call), want, atol=1e-5)


def test_it_is_selected_by_name(seed):
    call = random_call(seed)
    arguments = *call.content, call.relative, *call.segments
    got = kernels.disentangled_attention(*arguments, implementation="reference")
    np.testing.assert_array_equal(got, reference.attention(call))
    with pytest.raises(ValueError, match=r"attention 'fast': must be auto or one of"):
        kernels.disentangled_attention(*arguments, implementation="fast")
