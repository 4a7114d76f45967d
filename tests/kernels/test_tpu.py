"""The fused TPU kernels, interpreted, against the formula; and their compilation without a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.kernels import tpu
from deberta_jax.kernels.protocol import AttentionCall
from deberta_jax.kernels.relative import Relative
from deberta_jax.kernels.tpu import blocks as tpu_blocks
from deberta_jax.model.positions import relative_rows

BUCKETED = dict(span=32, buckets=32, max_relative_positions=64)
CLAMPED = dict(span=40, buckets=0, max_relative_positions=40)


@pytest.fixture
def small_blocks(monkeypatch):
    """Near, far and skipped pairs of blocks out of a short sequence."""
    monkeypatch.setattr(tpu_blocks, "LARGEST_BLOCK", 128)


def random_case(seed, length, heads, size, terms, positions, dtype=jnp.float32):
    """(five operands, distance rows, segments, gradient of the output)."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    query, key, value = (normal(2, length, heads, size) for _ in range(3))
    tables = [
        normal(2 * positions["span"], heads, size) if term in terms else None
        for term in ("c2p", "p2c")
    ]
    rows = relative_rows(np.arange(-(length - 1), length), **positions)
    # Three documents, padding between and after them; the second item holds one short document.
    cuts = np.sort(rng.choice(np.arange(1, length), 4, replace=False))
    segments = np.zeros((2, length), np.int32)
    for document, (start, end) in enumerate([(0, cuts[0]), (cuts[0], cuts[1]), cuts[2:]], 1):
        segments[0, start:end] = document
    segments[1, : cuts[0]] = 1
    operands = (query, key, value, *tables)
    return operands, rows, jnp.asarray(segments), normal(2, length, heads, size)


def formula(query, key, value, key_table, query_table, rows, segments, causal=False, keep=None):
    """The formula with a gather, in the type of its operands; `keep` [B, H, Q, K] scales."""
    length = query.shape[1]
    places = np.arange(length)
    delta = rows[places[:, None] - places + length - 1]
    scores = jnp.einsum("bihd,bjhd->bhij", query, key)
    terms = 1
    if key_table is not None:
        scores, terms = scores + jnp.einsum("bihd,ijhd->bhij", query, key_table[delta]), terms + 1
    if query_table is not None:
        scores, terms = scores + jnp.einsum("bjhd,ijhd->bhij", key, query_table[delta]), terms + 1
    seen = (segments[:, :, None] == segments[:, None]) & (segments[:, None] > 0)
    if causal:
        seen &= places[:, None] >= places
    scores = jnp.where(seen[:, None], scores / np.sqrt(terms * query.shape[-1]), -1e30)
    weights = jax.nn.softmax(scores, axis=-1) * seen[:, None]
    if keep is not None:
        weights *= keep
    return jnp.einsum("bhij,bjhd->bihd", weights, value)


def fused(operands, rows, segments, **settings):
    *content, key_table, query_table = operands
    relative = None
    if key_table is not None or query_table is not None:
        relative = Relative(key_table, query_table, rows)
    call = AttentionCall(*content, relative, segments, segments, **settings)
    return tpu.attention(call, interpret=True)


def value_and_gradients(function, operands, gradient):
    @jax.jit
    def both(operands):
        output, pull = jax.vjp(function, operands)
        return output, *pull(gradient.astype(output.dtype))[0]

    return both(operands)


def assert_close(got, want, tolerance):
    names = ("output", "query", "key", "value", "key table", "query table")
    for name, g, w in zip(names, got, want, strict=True):
        if w is None:
            assert g is None
            continue
        error = float(jnp.max(jnp.abs(g.astype(jnp.float32) - w)))
        assert error < tolerance * float(jnp.max(jnp.abs(w))), (name, error)


def check(seed, length, heads, size, terms, positions, causal=False, dtype=jnp.float32):
    operands, rows, segments, gradient = random_case(
        seed, length, heads, size, terms, positions, dtype
    )
    got = value_and_gradients(
        lambda operands: fused(operands, rows, segments, causal=causal), operands, gradient
    )
    operands, gradient = jax.tree.map(lambda x: x.astype(jnp.float32), (operands, gradient))
    want = value_and_gradients(
        lambda operands: formula(*operands, rows, segments, causal), operands, gradient
    )
    assert_close(got, want, 1e-5 if dtype == jnp.float32 else 3e-2)


@pytest.mark.parametrize("terms", [("c2p", "p2c"), ("c2p",), ("p2c",), ()], ids=str)
def test_terms(terms, small_blocks, seed):
    check(seed, 384, 1, 16, terms, BUCKETED)


@pytest.mark.parametrize("terms", [("c2p", "p2c"), ()], ids=str)
def test_one_block(terms, seed):
    check(seed, 256, 1, 16, terms, BUCKETED)


def test_clamped_positions(small_blocks, seed):
    check(seed, 384, 1, 16, ("c2p", "p2c"), CLAMPED)


@pytest.mark.parametrize("terms", [("c2p", "p2c"), ()], ids=str)
def test_causal(terms, small_blocks, seed):
    check(seed, 384, 1, 16, terms, BUCKETED, causal=True)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_head_sizes_and_paired_heads(size, seed):
    check(seed, 128, 2, size, ("c2p", "p2c"), BUCKETED, dtype=jnp.bfloat16)


def test_paired_heads_far_apart(small_blocks, seed):
    check(seed, 384, 2, 16, ("c2p", "p2c"), BUCKETED, dtype=jnp.bfloat16)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_chips_that_turn_all_rows_alike(dtype, small_blocks, seed, monkeypatch):
    monkeypatch.setattr(tpu_blocks.device, "turns_by_row", lambda: False)
    check(seed, 384, 2, 16, ("c2p", "p2c"), BUCKETED, dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "together"),
    [
        ("TPU v4", {512: 2, 2048: 1, 16384: None}),
        ("TPU v5", {512: 2, 2048: 2, 16384: 1}),
    ],
)
def test_heads_go_in_pairs_where_there_is_room(kind, together, monkeypatch):
    monkeypatch.setattr(tpu_blocks.device, "kind", lambda: kind)
    found = {}
    for length in together:
        rows = relative_rows(np.arange(1 - length, length), 256, 256, 512)
        table = jax.ShapeDtypeStruct((512, 2, 64), jnp.bfloat16)
        settings = Relative(table, table, rows), False, 0.1, jnp.bfloat16, False
        blocks = tpu_blocks.choose(length, 2, 64, *settings)
        found[length] = blocks.heads if tpu_blocks.fits(blocks, 64, jnp.bfloat16) else None
    assert found == together


def test_a_length_that_no_block_divides(small_blocks, seed):
    check(seed, 200, 1, 16, ("c2p", "p2c"), CLAMPED)


@pytest.mark.parametrize("heads", [1, 2])
def test_dropout_is_the_same_in_both_passes(heads, small_blocks, seed):
    """Values of one reveal what is kept; then output and gradients are those of that mask."""
    length, rate, dtype = 256, 0.3, jnp.float32 if heads == 1 else jnp.bfloat16
    rng = jax.random.key(seed)
    operands, rows, _, gradient = random_case(
        seed, length, heads, 256, ("c2p", "p2c"), BUCKETED, dtype
    )
    segments = jnp.ones((2, length), jnp.int32)
    # Even weights, and a value for each key that no other shares: outputs show the kept keys.
    zeros = jnp.zeros_like(operands[0])
    one_hot = jnp.broadcast_to(jnp.eye(length, 256)[None, :, None], zeros.shape).astype(dtype)
    settings = dict(dropout_rate=rate, dropout_rng=rng)
    shown = jax.jit(
        lambda: fused((zeros, zeros, one_hot, None, None), None, segments, **settings)
    )()
    keep = jnp.transpose(shown > 0, (0, 2, 1, 3))
    share = float(keep.mean())
    assert abs(share - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / keep.size)
    for other in (keep[::-1], keep[:, ::-1] if heads > 1 else keep[::-1], keep.swapaxes(-1, -2)):
        agreement = float((keep == other).mean())
        assert abs(agreement - (1 - 2 * rate * (1 - rate))) < 0.02, "items and heads differ"

    got = value_and_gradients(
        lambda operands: fused(operands, rows, segments, **settings), operands, gradient
    )
    operands, gradient = jax.tree.map(lambda x: x.astype(jnp.float32), (operands, gradient))
    want = value_and_gradients(
        lambda operands: formula(*operands, rows, segments, keep=keep / (1 - rate)),
        operands,
        gradient,
    )
    assert_close(got, want, 1e-5 if heads == 1 else 4e-2)


def test_dropout_knows_its_place_in_the_whole_batch(seed):
    """The second item and heads 2 and 3, computed alone, drop what they drop in company."""
    operands, rows, segments, _ = random_case(
        seed, 128, 4, 16, ("c2p", "p2c"), BUCKETED, jnp.bfloat16
    )
    settings = dict(dropout_rate=0.5, dropout_rng=jax.random.key(seed))
    whole = jax.jit(lambda: fused(operands, rows, segments, **settings))()
    *content, key_table, query_table = operands
    own = (*(x[1:, :, 2:] for x in content), key_table[:, 2:], query_table[:, 2:])
    alone = jax.jit(lambda: fused(own, rows, segments[1:], first=(1, 2), **settings))()
    np.testing.assert_array_equal(alone[0], whole[1, :, 2:])


def test_biases_are_added_and_their_gradients_summed(seed):
    operands, rows, segments, gradient = random_case(seed, 128, 2, 16, ("c2p",), BUCKETED)
    biases = jnp.asarray(np.random.default_rng(seed + 1).normal(size=(3, 2, 16)), jnp.float32)

    def given(operands, biases):
        return fused(operands, rows, segments, biases_3HD=biases)

    def added(operands, biases):
        content = [x + bias for x, bias in zip(operands[:3], biases, strict=True)]
        return formula(*content, *operands[3:], rows, segments)

    for function in (given, added):
        output, pull = jax.jit(lambda *a, f=function: jax.vjp(f, *a))(operands, biases)
        d_operands, d_biases = pull(gradient)
        found = (output, *d_operands)
        if function is given:
            want, d_want = found, d_biases
    assert_close(want, found, 1e-5)
    np.testing.assert_allclose(d_want, d_biases, atol=1e-5 * float(jnp.max(jnp.abs(d_biases))))


def test_what_is_hidden_leaves_no_trace(small_blocks, seed):
    """Keys and values of other documents and of padding may hold anything finite."""
    operands, rows, segments, gradient = random_case(seed, 256, 1, 16, ("c2p", "p2c"), BUCKETED)
    first = segments == 1
    query, key, value, *tables = operands

    def run(poison):
        hidden = jnp.where(first[..., None, None], 0.0, poison)
        poisoned = (query, key + hidden, value + hidden, *tables)
        output, *gradients = value_and_gradients(
            lambda operands: jnp.where(
                first[..., None, None], fused(operands, rows, segments), 0.0
            ),
            poisoned,
            gradient,
        )
        return output, gradients

    clean, poisoned = run(0.0), run(100.0)
    np.testing.assert_array_equal(clean[0], poisoned[0])
    for name, a, b in zip("qkv", clean[1], poisoned[1], strict=False):
        np.testing.assert_array_equal(a, b, err_msg=name)
    for name, gradient in zip("kv", poisoned[1][1:3], strict=True):
        assert not np.any(np.asarray(gradient)[~np.asarray(first)]), name


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(size=20), "head size must be a multiple of 16, not 20"),
        (dict(dtype=jnp.float16), "must be float32 or bfloat16"),
    ],
    ids=["head size", "type"],
)
def test_what_it_does_not_take_is_one_line(changed, message):
    query = jnp.zeros((1, 128, 2, changed.get("size", 16)), changed.get("dtype", jnp.float32))
    with pytest.raises(ValueError, match=message):
        tpu.IMPLEMENTATION.require(AttentionCall(query, query, query, None, None, None))


def test_key_blocks_beyond_the_buckets_need_no_table():
    rows = relative_rows(np.arange(-4095, 4096), span=256, buckets=256, max_relative_positions=512)
    relative = Relative(True, True, rows)
    blocks = tpu_blocks.choose(4096, 12, 64, relative, False, 0.0, jnp.bfloat16, False)
    assert (blocks.block, blocks.near, blocks.heads) == (512, 1, 2)
    assert blocks.table_width == 2048
    longest = tpu_blocks.choose(16384, 12, 64, relative, False, 0.0, jnp.bfloat16, False)
    assert (longest.near, longest.table_width, longest.heads) == (1, 2048, 1)


def test_jit_retraces_for_no_new_data(seed):
    """Segments and seeds are data: one compilation serves every batch."""
    operands, rows, segments, _ = random_case(seed, 128, 2, 16, ("c2p",), CLAMPED, jnp.bfloat16)
    traces = []

    @functools.partial(jax.jit)
    def run(segments, rng):
        traces.append(1)
        return fused(operands, rows, segments, dropout_rate=0.1, dropout_rng=rng)

    for step in range(3):
        run(jnp.roll(segments, step, 1), jax.random.key(seed + step)).block_until_ready()
    assert len(traces) == 1
