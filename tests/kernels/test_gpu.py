"""The GPU kernels, interpreted on any machine, against the formula; and lowered for CUDA."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.kernels import gpu
from deberta_jax.kernels.gpu.tiles import keep_pairs
from deberta_jax.kernels.protocol import AttentionCall
from deberta_jax.kernels.relative import Relative
from deberta_jax.model.positions import relative_rows
from tests.kernels import formula as reference_attention

BUCKETED = dict(span=8, buckets=8, max_relative_positions=16)
CLAMPED = dict(span=6, buckets=0, max_relative_positions=6)
UNSATURATED = dict(span=256, buckets=0, max_relative_positions=256)
BOTH = ("c2p", "p2c")
LENGTH = 150  # three tiles of 64 keys: the outer ones lie beyond the band; the last is cut


def random_case(seed, length=LENGTH, positions=BUCKETED, terms=BOTH, size=32, queries=None):
    """Operands [q, k, v, relative keys, relative queries], the weight of each output, segments."""
    rng = np.random.default_rng(seed)
    shapes = [(2, queries or length, 2, size)] + [(2, length, 2, size)] * 2
    shapes += [(2 * positions["span"], 2, size)] * 2
    operands = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    operands[3:] = [x if t in terms else None for t, x in zip(BOTH, operands[3:], strict=True)]
    weight = rng.normal(size=shapes[0]).astype(np.float32)
    # Two documents and padding in the first item; one document, whose middle is padding, in the
    # second.
    segments = np.ones((2, length), np.int32)
    cut = int(rng.integers(1, length - 10))
    segments[0, cut:], segments[0, -9:] = 2, 0
    segments[1, length // 3 : length // 2] = 0
    return operands, weight, segments


def rows_of(positions, length):
    return relative_rows(np.arange(-(length - 1), length), **positions)


def kernel(operands, segments, positions, places=None, query_segments=None, **options):
    query, key, value, relative_key, relative_query = operands
    relative = Relative(relative_key, relative_query, rows_of(positions, key.shape[1]))
    query_segments = segments if query_segments is None else query_segments
    call = AttentionCall(query, key, value, relative, query_segments, segments, places, **options)
    return gpu.attention(call, interpret=True)


def gathered(
    operands, segments, positions, places=None, query_segments=None, causal=False, kept=None, rate=0
):
    """The released formulation, in float32: gathers and whole score matrices."""
    query, key, value, relative_key, relative_query = (
        None if x is None else x.astype(jnp.float32) for x in operands
    )
    if places is None:
        places = jnp.broadcast_to(jnp.arange(query.shape[1]), query.shape[:2])
    distances = places[:, :, None] - jnp.arange(key.shape[1])
    rows = jnp.asarray(rows_of(positions, key.shape[1]))[distances + key.shape[1] - 1]
    scores = jnp.einsum("bihd,bjhd->bhij", query, key)
    if relative_key is not None:
        scores += jnp.einsum("bihd,bijhd->bhij", query, relative_key[rows])
    if relative_query is not None:
        scores += jnp.einsum("bjhd,bijhd->bhij", key, relative_query[rows])
    terms = 1 + (relative_key is not None) + (relative_query is not None)
    query_segments = segments if query_segments is None else query_segments
    visible = (query_segments[:, :, None] == segments[:, None]) & (segments[:, None] > 0)
    if causal:
        visible &= distances >= 0
    visible = visible[:, None]
    scores = jnp.where(visible, scores / np.sqrt(terms * query.shape[-1]), -1e30)
    weights = jax.nn.softmax(scores, axis=-1) * visible
    if kept is not None:
        weights = jnp.where(kept, weights / (1 - rate), 0)
    return jnp.einsum("bhij,bjhd->bihd", weights, value)


def value_and_gradients(function, operands, weight):
    """Outputs, and the gradients of their weighted sum by the operands that are there."""

    def weighted(operands):
        output = function(operands)
        return jnp.sum(output.astype(jnp.float32) * weight), output

    (_, output), gradients = jax.jit(jax.value_and_grad(weighted, has_aux=True))(operands)
    return output, gradients


def assert_agree(case, positions=BUCKETED, kept=None, atol=2e-5, **options):
    operands, weight, segments = case
    got = value_and_gradients(lambda x: kernel(x, segments, positions, **options), operands, weight)
    rate = options.pop("dropout_rate", 0)
    options.pop("dropout_rng", None)
    want = value_and_gradients(
        lambda x: gathered(x, segments, positions, kept=kept, rate=rate, **options),
        operands,
        weight,
    )
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == w.dtype or atol > 1e-3
        scale = max(1, float(np.abs(w).max()))
        np.testing.assert_allclose(
            np.asarray(g, np.float32), np.asarray(w, np.float32), atol=atol * scale
        )
    return got


@pytest.mark.parametrize(
    ("positions", "terms"),
    [
        (BUCKETED, BOTH),
        (BUCKETED, ("c2p",)),
        (BUCKETED, ("p2c",)),
        (BUCKETED, ()),
        (CLAMPED, BOTH),
        (UNSATURATED, BOTH),
    ],
    ids=str,
)
def test_values_and_gradients(positions, terms, seed):
    assert_agree(random_case(seed, positions=positions, terms=terms), positions)


def test_one_token(seed):
    """The least band: all distances have one row, and of the tiles all but a corner is cut off."""
    operands, weight, segments = random_case(seed, length=12)
    operands[:3] = [x[:, :1] for x in operands[:3]]
    assert_agree((operands, weight[:, :1], np.ones_like(segments[:, :1])))


def test_values_equal_the_formula_in_float64(seed):
    operands, _, segments = random_case(seed, length=70)
    got = jax.jit(functools.partial(kernel, positions=BUCKETED))(operands, segments)
    places = np.broadcast_to(np.arange(70), (2, 70))
    delta = functools.partial(reference_attention.row, **BUCKETED)
    want = reference_attention.attention(*operands, delta, segments, segments, places)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert not np.any(np.asarray(got)[segments == 0]), "queries that see nothing give zeros"


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(128, np.float32), (64, jnp.bfloat16), (128, jnp.float16)],
)
def test_head_sizes_and_types(size, dtype, seed):
    operands, weight, segments = random_case(seed, length=70, size=size)
    operands = [jnp.asarray(x, dtype) for x in operands]
    atol = 2e-5 if dtype == np.float32 else 2e-2
    output, gradients = assert_agree((operands, weight, segments), atol=atol)
    assert {x.dtype for x in (output, *gradients)} == {jnp.dtype(dtype)}


def test_causal(seed):
    assert_agree(random_case(seed), causal=True)


def test_queries_at_arbitrary_places(seed):
    """In any order, with places that several queries share, and with queries that are padding."""
    operands, weight, segments = random_case(seed, queries=75)
    places = np.random.default_rng(seed + 1).integers(0, LENGTH, (2, 75)).astype(np.int32)
    places[:, 40:] = np.sort(places[:, 40:])
    places[0, :3] = places[0, 70]
    query_segments = np.take_along_axis(segments, places, axis=1)
    query_segments[:, -5:] = 0
    case = operands, weight, segments
    assert_agree(case, places=places, query_segments=query_segments, causal=bool(seed % 2))


def test_nothing_comes_from_padding_or_from_another_document(seed):
    """Whatever stands there, even huge: same outputs, same gradients, to the last bit."""
    operands, weight, segments = random_case(seed)
    first = segments[:, :, None, None] == 1
    weight = weight * first  # only the first document's outputs count

    function = functools.partial(kernel, segments=segments, positions=BUCKETED)
    compiled = jax.jit(lambda operands: value_and_gradients(function, operands, weight))

    def run(operands):
        output, gradients = compiled(operands)
        return np.where(first, output, 0), gradients

    poisoned = [np.where(first, x, 1e4 * x) for x in operands[:3]] + operands[3:]
    clean, dirty = run(operands), run(poisoned)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(a, b)
    for gradient in clean[1][:3]:
        assert np.any(gradient)
        assert not np.any(np.where(first, 0, gradient))


def whole_mask(rng, rate, queries=LENGTH, keys=LENGTH):
    """[B, H, Q, K]: what dropout keeps, from the hash outside the kernel."""
    items, heads = jnp.arange(2)[:, None, None, None], jnp.arange(2)[:, None, None]
    seeds = jax.random.bits(rng, (2,), jnp.uint32)
    return keep_pairs(seeds, items, heads, jnp.arange(queries)[:, None], jnp.arange(keys), rate)


@pytest.mark.parametrize("queries", [None, 75], ids=["square", "placed"])
def test_dropout_is_the_same_in_both_passes(queries, seed):
    case = random_case(seed, queries=queries)
    options = dict(dropout_rate=0.3, dropout_rng=jax.random.key(seed))
    if queries:
        places = np.random.default_rng(seed).permutation(LENGTH)[:queries].astype(np.int32)
        options["places"] = np.stack([places, places[::-1]])
        options["query_segments"] = np.take_along_axis(case[2], options["places"], axis=1)
    kept = whole_mask(options["dropout_rng"], 0.3, queries or LENGTH)
    assert_agree(case, kept=kept, **options)


def test_a_part_of_a_batch_is_dropped_as_in_the_whole(seed):
    operands, _, segments = random_case(seed, length=40)
    options = dict(dropout_rate=0.5, dropout_rng=jax.random.key(seed))
    run = functools.partial(kernel, positions=BUCKETED, **options)
    whole = jax.jit(run)(operands, segments)
    operands = [x[1:, :, 1:] for x in operands[:3]] + [x[:, 1:] for x in operands[3:]]
    part = jax.jit(run)(operands, segments[1:], first=(1, 1))
    np.testing.assert_allclose(part, whole[1:, :, 1:], atol=1e-6)


def test_dropout_is_fair(seed):
    """The right share over all, over each query and key; no two heads, items or queries alike."""
    rate, length = 0.25, 512
    kept = np.asarray(
        jax.jit(whole_mask, static_argnums=(1, 2, 3))(jax.random.key(seed), rate, length, length)
    ).astype(np.float64)
    deviation = np.sqrt(rate * (1 - rate))
    assert abs(kept.mean() - (1 - rate)) < 6 * deviation / np.sqrt(kept.size)
    for axis in (2, 3):
        shares = kept.mean(axis=axis)
        assert np.abs(shares - (1 - rate)).max() < 6 * deviation / np.sqrt(length)
        np.testing.assert_allclose(shares.std(), deviation / np.sqrt(length), rtol=0.2)
    centred = (kept - kept.mean()).reshape(4, -1)
    correlations = np.corrcoef(centred) - np.eye(4)
    assert np.abs(correlations).max() < 6 / length
    for shift in (1, 2, 31):  # along queries, along keys, along diagonals
        for other in (
            (kept[:, :, shift:], kept[:, :, :-shift]),
            (kept[..., shift:], kept[..., :-shift]),
            (kept[:, :, shift:, shift:], kept[:, :, :-shift, :-shift]),
        ):
            correlation = np.corrcoef(other[0].ravel(), other[1].ravel())[0, 1]
            assert abs(correlation) < 6 / np.sqrt(other[0].size)


def cuda():
    """Newer versions of JAX lower for a named device."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def lowered(size, dtype, length=512, queries=None, **options):
    """StableHLO of forward and backward for CUDA."""
    positions = dict(span=256, buckets=256, max_relative_positions=512)
    shape = jax.ShapeDtypeStruct
    tokens = [shape((2, n, 4, size), dtype) for n in (queries or length, length, length)]
    operands = tokens + [shape((512, 4, size), dtype)] * 2
    segments = [shape((2, n), jnp.int32) for n in (queries or length, length)]
    places = shape((2, queries), jnp.int32) if queries else None

    def function(operands, query_segments, segments, places):
        relative = Relative(*operands[3:], rows_of(positions, length))
        call = AttentionCall(*operands[:3], relative, query_segments, segments, places, **options)
        output = gpu.attention(call)
        return jnp.sum(output.astype(jnp.float32))

    with cuda():
        traced = jax.jit(jax.grad(function)).trace(operands, *segments, places)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", gpu.HEAD_SIZES)
def test_lowers_for_cuda(size, dtype):
    assert lowered(size, dtype).count("@__gpu$xla.gpu.triton(") == 3


@pytest.mark.parametrize(
    "options",
    [
        dict(causal=True),
        dict(dropout_rate=0.1, dropout_rng=np.zeros(2, np.uint32)),
        dict(queries=80),
        dict(length=301),
    ],
    ids=["causal", "dropout", "placed", "odd"],
)
def test_lowers_every_option(options):
    assert lowered(64, "bfloat16", **options).count("@__gpu$xla.gpu.triton(") == 3


def test_nothing_is_quadratic_in_length():
    text = lowered(64, "bfloat16", length=3001)
    assert "3001x" in text and "3001x3001" not in text
    assert max(text.count(f"3001x{width}x") for width in (3001, 3008, 3072)) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(size=48), NotImplementedError, "head size 48"),
        (dict(dtype=np.int32), NotImplementedError, "int32"),
        (dict(queries=7), ValueError, "query positions"),
        (dict(rows=20), ValueError, "need 21 rows"),
        (dict(options=dict(dropout_rate=0.1)), ValueError, "key"),
        (dict(options=dict(dropout_rate=1.0)), ValueError, "dropout 1.0"),
        (dict(heads=3), ValueError, "differ"),
    ],
    ids=str,
)
def test_what_is_not_supported_says_so(change, error, message):
    size, dtype = change.get("size", 32), change.get("dtype", np.float32)
    query = np.zeros((1, change.get("queries", 11), change.get("heads", 2), size), dtype)
    key = np.zeros((1, 11, 2, size), dtype)
    table = np.zeros((16, 2, size), dtype)
    relative = Relative(table, table, np.zeros(change.get("rows", 21), np.int64))
    segments = np.ones(query.shape[:2], np.int32), np.ones((1, 11), np.int32)
    with pytest.raises(error, match=message):
        call = AttentionCall(query, key, key, relative, *segments, **change.get("options", {}))
        gpu.attention(call)
