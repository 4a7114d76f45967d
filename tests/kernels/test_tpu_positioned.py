"""The fused TPU kernels for queries at any positions, interpreted, against the formula with
gathers; and their compilation without a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.kernels import tpu
from deberta_jax.kernels.protocol import AttentionCall
from deberta_jax.kernels.relative import Relative
from deberta_jax.kernels.tpu import blocks as tpu_blocks
from deberta_jax.kernels.tpu.positioned import positioned_attention
from deberta_jax.model.positions import relative_rows
from tests.kernels.formula import attention as reference
from tests.kernels.test_tpu import BUCKETED, assert_close, value_and_gradients
from tests.tpu_compiler import compiled_for_tpu, recorded

BOTH = ("c2p", "p2c")
# (type, batch, length, queries) of what is compiled.
COMPILED = [
    ("bfloat16", 2, 512, 77),
    ("bfloat16", 2, 2048, 308),
    ("bfloat16", 4096, 128, 20),  # what the scalar memory holds of so many
]


@pytest.fixture
def small_blocks(monkeypatch):
    """Near, far and skipped pairs out of a short sequence."""
    monkeypatch.setattr(tpu_blocks, "LARGEST_BLOCK", 128)


def random_positions(rng, queries, length):
    """Unsorted, with repeats: near and far, of all queries, of one position three times."""
    positions = rng.integers(0, length, (2, queries))
    positions[:, 1] = positions[:, 0]
    positions[:, queries // 2] = positions[:, 0]
    positions[1] = np.sort(positions[1])
    return positions.astype(np.int32)


def random_case(seed, length, queries, heads, terms, buckets, dtype=jnp.float32, size=16):
    """(five operands, (rows, segments of queries and of keys, positions), output's gradient)."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    query, key, value = (normal(2, n, heads, size) for n in (queries, length, length))
    tables = [normal(2 * buckets["span"], heads, size) if term in terms else None for term in BOTH]
    rows = relative_rows(np.arange(-(length - 1), length), **buckets)
    # Two documents with padding between and after them; the second item is one short document.
    cuts = np.sort(rng.choice(np.arange(1, length), 3, replace=False))
    segments = np.zeros((2, length), np.int32)
    segments[0, : cuts[0]], segments[0, cuts[1] : cuts[2]], segments[1, : cuts[2]] = 1, 2, 1
    positions = random_positions(rng, queries, length)
    query_segments = np.take_along_axis(segments, positions, axis=1)
    query_segments[:, -2:] = 0  # padding, wherever it stands
    constants = rows, jnp.asarray(query_segments), jnp.asarray(segments), jnp.asarray(positions)
    gradient = normal(2, queries, heads, size).at[:, 1].set(0)  # as of a list's padding
    return (query, key, value, *tables), constants, gradient


def formula(operands, constants, causal=False, keep=None):
    """The formula with gathers; `keep` [B, H, P, K] scales."""
    query, key, value, key_table, query_table = operands
    rows, query_segments, segments, positions = constants
    length = key.shape[1]
    distance_BPK = positions[..., None] - jnp.arange(length)
    delta = jnp.asarray(rows)[distance_BPK + length - 1]
    scores, terms = jnp.einsum("bphd,bkhd->bhpk", query, key), 1
    if key_table is not None:
        scores, terms = scores + jnp.einsum("bphd,bpkhd->bhpk", query, key_table[delta]), terms + 1
    if query_table is not None:
        scores, terms = scores + jnp.einsum("bkhd,bpkhd->bhpk", key, query_table[delta]), terms + 1
    seen = (query_segments[..., None] == segments[:, None]) & (segments[:, None] > 0)
    if causal:
        seen &= distance_BPK >= 0
    scores = jnp.where(seen[:, None], scores / np.sqrt(terms * query.shape[-1]), -1e30)
    weights = jax.nn.softmax(scores, axis=-1) * seen[:, None]
    if keep is not None:
        weights *= keep
    return jnp.einsum("bhpk,bkhd->bphd", weights, value)


def fused(operands, constants, **settings):
    *content, key_table, query_table = operands
    rows, *of_tokens = constants
    relative = None
    if key_table is not None or query_table is not None:
        relative = Relative(key_table, query_table, rows)
    call = AttentionCall(*content, relative, *of_tokens, **settings)
    return positioned_attention(call, interpret=True)


def compare(case, tolerance, causal=False):
    operands, constants, gradient = case
    got = value_and_gradients(lambda x: fused(x, constants, causal=causal), operands, gradient)
    operands, gradient = jax.tree.map(lambda x: x.astype(jnp.float32), (operands, gradient))
    want = value_and_gradients(lambda x: formula(x, constants, causal), operands, gradient)
    assert_close(got, want, tolerance)


@pytest.mark.parametrize("terms", [("c2p",), ("p2c",), ()], ids=str)
def test_terms(terms, seed):
    compare(random_case(seed, 100, 20, 1, terms, BUCKETED), 1e-5)


def test_far_apart(small_blocks, seed):
    compare(random_case(seed, 384, 140, 1, BOTH, BUCKETED), 1e-5)


def test_causal(small_blocks, seed):
    compare(random_case(seed, 256, 30, 1, BOTH, BUCKETED), 1e-5, causal=True)


def test_a_table_that_ends_past_a_block(small_blocks, seed):
    buckets = dict(span=129, buckets=0, max_relative_positions=129)
    compare(random_case(seed, 384, 30, 1, BOTH, buckets), 1e-5)


def test_paired_heads(small_blocks, seed):
    compare(random_case(seed, 500, 30, 2, BOTH, BUCKETED, jnp.bfloat16, 32), 3e-2)


def test_the_reference(seed):
    (query, key, value, *tables), constants, _ = random_case(seed, 140, 9, 2, BOTH, BUCKETED)
    rows, query_segments, segments, positions = constants
    got = jax.jit(lambda: fused((query, key, value, *tables), constants))()
    arrays = [np.asarray(x, np.float64) for x in (query, key, value, *tables)]
    want = reference(
        *arrays,
        lambda i, j: rows[i - j + 139],
        *map(np.asarray, (query_segments, segments, positions)),
    )
    np.testing.assert_allclose(got, want, atol=5e-6)


def test_queries_in_order_are_the_square_kernel(small_blocks, seed):
    """Whatever the order: to the bit of dropout, and within rounding."""
    length, dropout = 256, dict(dropout_rate=0.3, dropout_rng=jax.random.key(seed))
    operands, (rows, _, segments, _), _ = random_case(
        seed, length, length, 2, BOTH, BUCKETED, jnp.bfloat16
    )
    order = jax.random.permutation(jax.random.key(seed), length)
    positions = jnp.broadcast_to(order, (2, length))

    def relative(tables):
        return Relative(*tables, rows)

    @jax.jit
    def both(operands):
        query, *others, key_table, query_table = operands
        tables = relative((key_table, query_table))
        call = AttentionCall(query, *others, tables, segments, segments, **dropout)
        square = tpu.attention(call, interpret=True)
        masked = fused(
            (query[:, order], *others, key_table, query_table),
            (rows, segments[:, order], segments, positions),
            **dropout,
        )
        return square[:, order], masked

    square, masked = both(operands)
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (masked, square)), atol=0.03)


@pytest.mark.parametrize("heads", [1, 2])
def test_dropout_is_the_same_in_both_passes(heads, seed):
    """Values of one reveal what is kept; then output and gradients are those of that mask."""
    length, queries, rate = 128, 30, 0.3
    dtype = jnp.float32 if heads == 1 else jnp.bfloat16
    operands, (rows, *_, positions), gradient = random_case(
        seed, length, queries, heads, BOTH, BUCKETED, dtype, size=length
    )
    ones = jnp.ones((2, length), jnp.int32)
    constants = rows, ones[:, :queries], ones, positions
    settings = dict(dropout_rate=rate, dropout_rng=jax.random.key(seed))
    one_hot = jnp.broadcast_to(jnp.eye(length)[:, None], operands[1].shape).astype(dtype)
    zeros = jnp.zeros_like(operands[0]), jnp.zeros_like(operands[1])
    shown = jax.jit(lambda: fused((*zeros, one_hot, None, None), constants, **settings))()
    keep = jnp.transpose(shown > 0, (0, 2, 1, 3))
    assert abs(float(keep.mean()) - (1 - rate)) < 6 * np.sqrt(rate * (1 - rate) / keep.size)
    got = value_and_gradients(lambda x: fused(x, constants, **settings), operands, gradient)
    operands, gradient = jax.tree.map(lambda x: x.astype(jnp.float32), (operands, gradient))
    want = value_and_gradients(
        lambda x: formula(x, constants, keep=keep / (1 - rate)), operands, gradient
    )
    assert_close(got, want, 3e-6 if heads == 1 else 4e-2)


def test_queries_that_see_nothing_get_zeros(seed):
    operands, (rows, query_segments, *others), gradient = random_case(
        seed, 128, 9, 1, BOTH, BUCKETED
    )
    constants = rows, query_segments.at[:, :4].set(0).at[:, 4].set(7), *others
    output, d_query, *rest = value_and_gradients(lambda x: fused(x, constants), operands, gradient)
    assert not np.any(output[:, :5]) and not np.any(d_query[:, :5])
    assert all(np.all(np.isfinite(x)) for x in (output, d_query, *rest))


def positioned_programs():
    return [positioned_program(*case) for case in COMPILED]


def positioned_program(dtype, batch, length, queries):
    """(kernels, gathers and the like) of the gradients, dropout on."""
    from deberta_jax.estimates.cost import tpu_devices

    heads, size = 2, 64
    mesh = jax.sharding.Mesh(np.array(tpu_devices("v5e")[:1]), ("data",))
    layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = relative_rows(
        np.arange(1 - length, length), span=256, buckets=256, max_relative_positions=512
    )

    def loss(query, key, value, key_rows, query_rows, of_queries, segments, rng):
        call = AttentionCall(
            *(query, key, value, Relative(key_rows, query_rows, rows)),
            *(of_queries["segments"], segments, of_queries["positions"]),
            dropout_rate=0.1,
            dropout_rng=rng,
        )
        return positioned_attention(call).astype(jnp.float32).sum()

    def abstract(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)

    content, table = abstract(batch, length, heads, size), abstract(512, heads, size)
    query, of_query = abstract(batch, queries, heads, size), abstract(batch, queries, dtype="int32")
    of_queries = {"segments": of_query, "positions": of_query}
    others = abstract(batch, length, dtype="int32"), abstract(2, dtype="uint32")
    operands = query, content, content, table, table, of_queries, *others
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss, range(5))).lower(*operands)

    def facts():
        text = lowered.compile().as_text()
        return (
            text.count('custom_call_target="tpu_custom_call"'),
            sum(text.count(f" {name}(") for name in ("gather", "scatter", "sort")),
        )

    return recorded(f"positioned {batch} x {length}, {queries} queries {dtype}", lowered, facts)


def test_compiles_for_tpu_without_a_gather():
    assert compiled_for_tpu(positioned_programs) == [[2, 0]] * len(COMPILED)
