"""XLA attention: whole sequences and blocks, all heads at once and groups of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.kernels import xla
from deberta_jax.kernels.protocol import AttentionCall
from deberta_jax.kernels.relative import Relative
from deberta_jax.kernels.xla import blocks as xla_blocks
from deberta_jax.kernels.xla import dropout as xla_dropout
from deberta_jax.kernels.xla import implementation
from deberta_jax.kernels.xla.rows import expand
from deberta_jax.model.positions import relative_rows
from tests.kernels import formula as reference_attention

BUCKETED = dict(span=8, buckets=8, max_relative_positions=16)
CLAMPED = dict(span=6, buckets=0, max_relative_positions=6)
# Sizes so small that short sequences take every path: padding, far keys, partial groups of heads.
FORMULATIONS = {
    "whole": dict(WHOLE=128, SHORT_TILE=8),
    "whole, head by head": dict(WHOLE=128, SHORT_TILE=8, SCORES=0, CACHED=0, LARGE=0),
    "blocks": dict(WHOLE=8, BLOCK=8, LONG_TILE=4),
    "blocks, head by head": dict(WHOLE=8, BLOCK=8, LONG_TILE=4, SCORES=0, CACHED=0),
}
LENGTH = 61


@pytest.fixture
def formulation(request, monkeypatch):
    for name, value in FORMULATIONS[request.param].items():
        module = implementation if hasattr(implementation, name) else xla_blocks
        monkeypatch.setattr(module, name, value)
    return request.param


def pytest_generate_tests(metafunc):
    if "formulation" in metafunc.fixturenames:
        metafunc.parametrize("formulation", FORMULATIONS, indirect=True)


def random_case(terms, positions, seed, queries=None, batch=2, heads=2, size=4):
    """Operands, segments of packed documents with padding, and places of `queries`, if told."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, n, heads, size) for n in (queries or LENGTH, LENGTH, LENGTH)]
    shapes += [(2 * positions["span"], heads, size)] * len(terms)
    operands = [rng.normal(size=shape) for shape in shapes]
    segments = np.sort(rng.integers(1, 4, (batch, LENGTH)), axis=1).astype(np.int32)
    segments[0, -rng.integers(1, 20) :] = 0
    if queries is None:
        return operands, segments, None
    places = rng.integers(0, LENGTH, (batch, queries)).astype(np.int32)
    places[0, 0] = places[0, -1]
    return operands, segments, places


def query_segments(segments, places):
    return segments if places is None else np.take_along_axis(segments, places, axis=1)


def tables(terms, operands):
    given = dict(zip(terms, operands[3:], strict=True))
    return given.get("c2p"), given.get("p2c")


def run(operands, segments, places, terms, positions, **options):
    rows = relative_rows(np.arange(1 - LENGTH, LENGTH), **positions)
    relative = Relative(*tables(terms, operands), rows) if terms else None
    queries = query_segments(segments, places)
    call = AttentionCall(*operands[:3], relative, queries, segments, places, **options)
    return xla.attention(call)


def gathered(operands, segments, places, terms, positions, keep=None, rate=0.0, causal=False):
    """The formula by gathers; `keep` [H, B, Q, K] is the dropout's mask."""
    query, key, value = operands[:3]
    relative_key, relative_query = tables(terms, operands)
    if places is None:
        places = np.broadcast_to(np.arange(LENGTH), segments.shape)
    distance_BQK = places[..., None] - np.arange(LENGTH)
    rows = relative_rows(distance_BQK, **positions)
    scores = jnp.einsum("bihd,bjhd->bhij", query, key)
    if relative_key is not None:
        scores += jnp.einsum("bihd,bijhd->bhij", query, relative_key[rows])
    if relative_query is not None:
        scores += jnp.einsum("bjhd,bijhd->bhij", key, relative_query[rows])
    queries = query_segments(segments, None if places.shape == segments.shape else places)
    visible = (queries[..., None] == segments[:, None]) & (segments[:, None] > 0)
    if causal:
        visible &= distance_BQK >= 0
    scores /= np.sqrt((1 + len(terms)) * query.shape[-1])
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -1e30), axis=-1)
    weights *= visible[:, None]
    if keep is not None:
        weights = weights * keep.swapaxes(0, 1) / (1 - rate)
    return jnp.einsum("bhij,bjhd->bihd", weights, value)


def with_gradients(function, operands, weight):
    """The function's value, and the gradients of its weighted sum by every operand."""

    def loss(operands):
        out = function(operands)
        return jnp.sum(out * weight), out

    return jax.jit(jax.grad(loss, has_aux=True))(operands)


def assert_same(got, want):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, atol=1e-9)


@pytest.mark.parametrize("queries", [None, 11], ids=["square", "anywhere"])
@pytest.mark.parametrize("positions", [BUCKETED, CLAMPED], ids=["buckets", "clamp"])
@pytest.mark.parametrize("terms", [("c2p", "p2c"), ("c2p",), ("p2c",), ()], ids=str)
def test_values_and_gradients(formulation, terms, positions, queries, seed):
    operands, segments, places = random_case(terms, positions, seed, queries)
    weight = np.random.default_rng(seed + 1).normal(size=operands[0].shape)
    case = dict(segments=segments, places=places, terms=terms, positions=positions)
    with jax.enable_x64(True):
        got = with_gradients(functools.partial(run, **case), operands, weight)
        assert_same(got, with_gradients(functools.partial(gathered, **case), operands, weight))
    if terms == ("c2p", "p2c"):
        everywhere = np.broadcast_to(np.arange(LENGTH), segments.shape)
        want = reference_attention.attention(
            *operands,
            lambda i, j: reference_attention.row(i, j, **positions),
            query_segments(segments, places),
            segments,
            everywhere if places is None else places,
        )
        np.testing.assert_allclose(got[1], want, atol=1e-9)


@pytest.mark.parametrize("queries", [None, 11], ids=["square", "anywhere"])
def test_causal(formulation, queries, seed):
    terms = ("c2p", "p2c")
    operands, segments, places = random_case(terms, CLAMPED, seed, queries)
    weight = np.random.default_rng(seed + 1).normal(size=operands[0].shape)
    case = dict(segments=segments, places=places, terms=terms, positions=CLAMPED, causal=True)
    with jax.enable_x64(True):
        got = with_gradients(functools.partial(run, **case), operands, weight)
        assert_same(got, with_gradients(functools.partial(gathered, **case), operands, weight))


@pytest.mark.parametrize("queries", [None, 11], ids=["square", "anywhere"])
def test_both_passes_drop_the_same(formulation, queries, seed):
    """Values and gradients are those of one explicit mask, the same for every formulation."""
    rate, terms, rng = 0.3, ("c2p", "p2c"), jax.random.key(seed)
    operands, segments, places = random_case(terms, BUCKETED, seed, queries)
    weight = np.random.default_rng(seed + 1).normal(size=operands[0].shape)
    keep = xla_dropout.keep(xla_dropout.seeds(rng, 2, 2), rate, 0, queries or LENGTH, LENGTH)
    case = dict(segments=segments, places=places, terms=terms, positions=BUCKETED)
    ours = functools.partial(run, **case, dropout_rate=rate, dropout_rng=rng)
    masked = functools.partial(gathered, **case, keep=keep, rate=rate)
    with jax.enable_x64(True):
        got = with_gradients(ours, operands, weight)
        assert_same(got, with_gradients(masked, operands, weight))


def test_dropout_keeps_its_share_independently(seed):
    rate, n = 0.1, 256
    seeds = xla_dropout.seeds(jax.random.key(seed), 3, 2)
    keep = np.asarray(jax.jit(lambda s: xla_dropout.keep(s, rate, 0, n, n))(seeds))
    share = 1 - rate
    deviation = np.sqrt(share * rate)
    assert abs(keep.mean() - share) < 6 * deviation / np.sqrt(keep.size)
    signs = (keep - share) / deviation
    neighbours = [signs[0, 0] * signs[1, 0], signs[0, 0] * signs[0, 1]]  # heads, items
    neighbours += [signs[..., 1:, :] * signs[..., :-1, :], signs[..., 1:] * signs[..., :-1]]
    for product in neighbours:
        assert abs(product.mean()) < 6 / np.sqrt(product.size)


@pytest.mark.parametrize("queries", [None, 200], ids=["square", "anywhere"])
def test_memory_is_linear_in_the_length(queries):
    sizes = [temporary_bytes(length, queries) for length in (2048, 4096)]
    assert sizes[1] < 2.2 * sizes[0]


@pytest.mark.parametrize("queries", [None, 300], ids=["square", "anywhere"])
def test_blocks_compile_without_gather_scatter_or_sort(queries):
    text = compiled(1300, queries).as_text()
    for operation in (" gather(", " scatter(", " sort("):
        assert operation not in text


def temporary_bytes(length, queries):
    return compiled(length, queries).memory_analysis().temp_size_in_bytes


def compiled(length, queries):
    """Forward and backward, with dropout and released buckets, as one program."""
    rows = relative_rows(np.arange(1 - length, length), 256, 256, 512)

    def loss(operands, segments, places, rng):
        relative = Relative(*operands[3:], rows)
        queries = jnp.ones(operands[0].shape[:2], jnp.int32)
        call = AttentionCall(*operands[:3], relative, queries, segments, places, 0.1, rng)
        out = xla.attention(call)
        return jnp.sum(out**2)

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    content = [shape(1, n, 2, 16) for n in (queries or length, length, length)]
    operands = [*content, shape(512, 2, 16), shape(512, 2, 16)]
    places = shape(1, queries, dtype=jnp.int32) if queries else None
    segments = shape(1, length, dtype=jnp.int32)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    return jax.jit(jax.grad(loss)).lower(operands, segments, places, rng).compile()


def test_half_precision_stays_near_single(seed):
    operands, segments, _ = random_case(("c2p", "p2c"), BUCKETED, seed)
    case = dict(segments=segments, places=None, terms=("c2p", "p2c"), positions=BUCKETED)
    function, outs = functools.partial(run, **case), []
    for dtype in (jnp.float32, jnp.bfloat16):
        cast = [jnp.asarray(x, dtype) for x in operands]
        outs.append(with_gradients(function, cast, jnp.ones(operands[0].shape, dtype)))
        assert all(x.dtype == dtype for x in jax.tree.leaves(outs[-1]))
    for single, half in zip(*map(jax.tree.leaves, outs), strict=True):
        off = np.linalg.norm(np.asarray(half, np.float32) - single) / np.linalg.norm(single)
        assert off < 0.05


@pytest.mark.parametrize("length", [5, 90, 700])
@pytest.mark.parametrize("positions", [BUCKETED, CLAMPED], ids=["buckets", "clamp"])
def test_rows_by_distance_are_those_of_a_gather(length, positions, seed):
    rng = np.random.default_rng(seed)
    rows = relative_rows(np.arange(1 - length, length), **positions)
    table = rng.integers(-99, 99, (2 * positions["span"], 2, 3)).astype(np.float32)
    weight = rng.integers(-99, 99, (2, len(rows), 3)).astype(np.float32)
    got, pull = jax.vjp(jax.jit(lambda x: expand(x, rows)), table)
    np.testing.assert_array_equal(got, table[rows].swapaxes(0, 1))
    want = np.zeros_like(table)
    np.add.at(want, rows, weight.swapaxes(0, 1))
    np.testing.assert_array_equal(pull(jnp.asarray(weight))[0], want)
