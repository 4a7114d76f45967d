"""Every attention implementation against the formula, with fresh random inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.kernels import disentangled_attention
from deberta_jax.kernels.relative import Relative
from deberta_jax.model.positions import relative_rows
from tests.kernels import formula as reference_attention

BUCKETED = dict(span=8, buckets=8, max_relative_positions=16)
CLAMPED = dict(span=6, buckets=0, max_relative_positions=6)


def random_case(length, terms, positions, seed, batch=2, heads=2, size=8):
    rng = np.random.default_rng(seed)
    content = [rng.normal(size=(batch, length, heads, size)) for _ in range(3)]
    tables = {
        term: rng.normal(size=(2 * positions["span"], heads, size)) if term in terms else None
        for term in ("c2p", "p2c")
    }
    # Two documents and padding in the first item; a wholly padded second one.
    segments = np.zeros((batch, length), np.int32)
    cut = int(rng.integers(1, length - 1))
    segments[0, :cut], segments[0, cut:-1] = 1, 2
    return content, tables, segments


def run(content, tables, segments, positions, places=None, query_segments=None):
    """Attention as one compiled function: operation by operation it would take far longer."""
    function = functools.partial(_run, positions=positions)
    return jax.jit(function)(content, tables, segments, places, query_segments)


def _run(content, tables, segments, places, query_segments, positions):
    length = content[1].shape[1]
    rows = relative_rows(np.arange(-(length - 1), length), **positions)
    relative = Relative(tables["c2p"], tables["p2c"], rows)
    return disentangled_attention(
        *content,
        relative,
        segments if query_segments is None else query_segments,
        segments,
        places,
    )


def expected(content, tables, segments, positions, places=None, query_segments=None):
    if places is None:
        places = np.broadcast_to(np.arange(content[0].shape[1]), content[0].shape[:2])
    return reference_attention.attention(
        *content,
        tables["c2p"],
        tables["p2c"],
        lambda i, j: reference_attention.row(i, j, **positions),
        segments if query_segments is None else query_segments,
        segments,
        places,
    )


@pytest.mark.parametrize("positions", [BUCKETED, CLAMPED], ids=["buckets", "clamp"])
@pytest.mark.parametrize("terms", [("c2p", "p2c"), ("c2p",), ("p2c",), ()], ids=str)
@pytest.mark.parametrize("length", [5, 32])
def test_square(length, terms, positions, seed):
    content, tables, segments = random_case(length, terms, positions, seed)
    with jax.enable_x64(True):
        got = run(content, tables, segments, positions)
    want = expected(content, tables, segments, positions)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert not np.any(got[1]), "queries that see nothing give zeros"


@pytest.mark.parametrize("positions", [BUCKETED, CLAMPED], ids=["buckets", "clamp"])
@pytest.mark.parametrize("terms", [("c2p", "p2c"), ("c2p",), ("p2c",), ()], ids=str)
def test_queries_at_arbitrary_places(terms, positions, seed):
    content, tables, segments = random_case(21, terms, positions, seed)
    places = np.random.default_rng(seed + 1).integers(0, 21, (2, 6)).astype(np.int32)
    places[0, :2] = places[0, 2]  # the same place more than once is allowed
    content[0] = content[0][:, :6]
    query_segments = np.take_along_axis(segments, places, axis=1)
    with jax.enable_x64(True):
        got = run(content, tables, segments, positions, places, query_segments)
    want = expected(content, tables, segments, positions, places, query_segments)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_gradients_equal_those_of_a_gather(seed):
    """All five gradients against autodiff of the released formulation (take_along_axis)."""
    content, tables, segments = random_case(24, ("c2p", "p2c"), BUCKETED, seed)
    rows = relative_rows(np.arange(24)[:, None] - np.arange(24)[None], **BUCKETED)
    weight = np.random.default_rng(seed + 2).normal(size=content[0].shape)

    def ours(*operands):
        return jnp.sum(
            weight * run(operands[:3], {"c2p": operands[3], "p2c": operands[4]}, segments, BUCKETED)
        )

    def gathered(query, key, value, relative_key, relative_query):
        scores = jnp.einsum("bihd,bjhd->bhij", query, key)
        scores += jnp.einsum("bihd,ijhd->bhij", query, relative_key[rows])
        scores += jnp.einsum("bjhd,ijhd->bhij", key, relative_query[rows])
        visible = (segments[:, :, None] == segments[:, None]) & (segments[:, None] > 0)
        scores = jnp.where(visible[:, None], scores / np.sqrt(3 * query.shape[-1]), -1e30)
        weights = jax.nn.softmax(scores, axis=-1) * visible[:, None]
        return jnp.sum(weight * jnp.einsum("bhij,bjhd->bihd", weights, value))

    operands = [jnp.asarray(x, jnp.float32) for x in (*content, tables["c2p"], tables["p2c"])]
    got = jax.grad(ours, argnums=range(5))(*operands)
    want = jax.grad(gathered, argnums=range(5))(*operands)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=2e-5)


def test_a_document_never_sees_another(seed):
    """The gradient of one document's outputs by another's keys and values is exactly zero."""
    content, tables, segments = random_case(16, ("c2p", "p2c"), BUCKETED, seed)
    first = segments == 1

    def output_of_first(key, value):
        out = run([content[0], key, value], tables, segments, BUCKETED)
        return jnp.sum(jnp.where(first[..., None, None], out, 0) ** 2)

    for gradient in jax.grad(output_of_first, argnums=(0, 1))(content[1], content[2]):
        assert np.any(gradient[0][first[0]])
        assert not np.any(np.asarray(gradient)[~first])


def test_compiles_without_gather_scatter_or_sort():
    content = [jax.ShapeDtypeStruct((2, 128, 2, 16), jnp.float32)] * 3
    segments = jax.ShapeDtypeStruct((2, 128), jnp.int32)
    places = jax.ShapeDtypeStruct((2, 20), jnp.int32)
    positions = dict(span=32, buckets=32, max_relative_positions=64)
    tables = {t: jax.ShapeDtypeStruct((64, 2, 16), jnp.float32) for t in ("c2p", "p2c")}

    def square(content, tables, segments):
        return jnp.sum(run(content, tables, segments, positions))

    def masked(content, tables, segments, places):
        query_segments = jnp.ones(places.shape, jnp.int32)
        content = [content[0][:, :20], *content[1:]]
        return jnp.sum(run(content, tables, segments, positions, places, query_segments))

    for function, arguments in (
        (square, (content, tables, segments)),
        (masked, (content, tables, segments, places)),
    ):
        text = jax.jit(jax.grad(function, argnums=(0, 1))).lower(*arguments).compile().as_text()
        for operation in (" gather(", " scatter(", " sort("):
            assert operation not in text
