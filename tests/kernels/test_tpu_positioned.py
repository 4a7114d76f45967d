"""The fused TPU kernels for queries at any places, interpreted, against the formula with gathers;
and their compilation without a TPU."""

import os
import subprocess
import sys

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

BOTH = ("c2p", "p2c")


@pytest.fixture
def small_blocks(monkeypatch):
    """Near, far and skipped pairs out of a short sequence."""
    monkeypatch.setattr(tpu_blocks, "LARGEST_BLOCK", 128)


def random_places(rng, queries, length):
    """Unsorted, with repeats: of places near and far, of all queries, of one place three times."""
    places = rng.integers(0, length, (2, queries))
    places[:, 1] = places[:, 0]
    places[:, queries // 2] = places[:, 0]
    places[1] = np.sort(places[1])
    return places.astype(np.int32)


def random_case(seed, length, queries, heads, terms, positions, dtype=jnp.float32, size=16):
    """(five operands, constants: rows, segments of queries and keys, places), output's gradient."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    query, key, value = (normal(2, n, heads, size) for n in (queries, length, length))
    tables = [
        normal(2 * positions["span"], heads, size) if term in terms else None for term in BOTH
    ]
    rows = relative_rows(np.arange(-(length - 1), length), **positions)
    # Two documents with padding between and after them; the second item is one short document.
    cuts = np.sort(rng.choice(np.arange(1, length), 3, replace=False))
    segments = np.zeros((2, length), np.int32)
    segments[0, : cuts[0]], segments[0, cuts[1] : cuts[2]], segments[1, : cuts[2]] = 1, 2, 1
    places = random_places(rng, queries, length)
    query_segments = np.take_along_axis(segments, places, axis=1)
    query_segments[:, -2:] = 0  # padding, wherever it stands
    constants = rows, jnp.asarray(query_segments), jnp.asarray(segments), jnp.asarray(places)
    gradient = normal(2, queries, heads, size).at[:, 1].set(0)  # as of a list's padding
    return (query, key, value, *tables), constants, gradient


def formula(operands, constants, causal=False, keep=None):
    """The formula with gathers; `keep` [B, H, P, K] scales."""
    query, key, value, key_table, query_table = operands
    rows, query_segments, segments, places = constants
    length = key.shape[1]
    distance_BPK = places[..., None] - jnp.arange(length)
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
    rows, *places = constants
    relative = None
    if key_table is not None or query_table is not None:
        relative = Relative(key_table, query_table, rows)
    call = AttentionCall(*content, relative, *places, **settings)
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
    positions = dict(span=129, buckets=0, max_relative_positions=129)
    compare(random_case(seed, 384, 30, 1, BOTH, positions), 1e-5)


def test_paired_heads(small_blocks, seed):
    compare(random_case(seed, 500, 30, 2, BOTH, BUCKETED, jnp.bfloat16, 32), 3e-2)


def test_the_reference(seed):
    (query, key, value, *tables), constants, _ = random_case(seed, 140, 9, 2, BOTH, BUCKETED)
    rows, query_segments, segments, places = constants
    got = jax.jit(lambda: fused((query, key, value, *tables), constants))()
    arrays = [np.asarray(x, np.float64) for x in (query, key, value, *tables)]
    want = reference(
        *arrays,
        lambda i, j: rows[i - j + 139],
        *map(np.asarray, (query_segments, segments, places)),
    )
    np.testing.assert_allclose(got, want, atol=5e-6)


def test_queries_in_order_are_the_square_kernel(small_blocks, seed):
    """Whatever the order: to the bit of dropout, and within rounding."""
    length, dropout = 256, dict(dropout_rate=0.3, dropout_rng=jax.random.key(seed))
    operands, (rows, _, segments, _), _ = random_case(
        seed, length, length, 2, BOTH, BUCKETED, jnp.bfloat16
    )
    order = jax.random.permutation(jax.random.key(seed), length)
    places = jnp.broadcast_to(order, (2, length))

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
            (rows, segments[:, order], segments, places),
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
    operands, (rows, *_, places), gradient = random_case(
        seed, length, queries, heads, BOTH, BUCKETED, dtype, size=length
    )
    ones = jnp.ones((2, length), jnp.int32)
    constants = rows, ones[:, :queries], ones, places
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


COMPILE = """
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from deberta_jax.kernels.protocol import AttentionCall
from deberta_jax.kernels.relative import Relative
from deberta_jax.kernels.tpu.positioned import positioned_attention
from deberta_jax.model.positions import relative_rows

device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
sharding = jax.sharding.SingleDeviceSharding(device)

def abstract(*shape, dtype={dtype}):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

batch, length, queries, heads, size = {batch}, {length}, {queries}, 2, 64
positions = dict(span=256, buckets=256, max_relative_positions=512)
rows = relative_rows(np.arange(1 - length, length), **positions)

def loss(query, key, value, key_rows, query_rows, query_segments, segments, places, rng):
    relative = Relative(key_rows, query_rows, rows)
    call = AttentionCall(query, key, value, relative, query_segments, segments, places,
                         dropout_rate=0.1, dropout_rng=rng)
    return positioned_attention(call).astype(jnp.float32).sum()

content, table = abstract(batch, length, heads, size), abstract(512, heads, size)
places = abstract(batch, queries, dtype=jnp.int32)
text = jax.jit(jax.grad(loss, range(5))).lower(
    abstract(batch, queries, heads, size), content, content, table, table, places,
    abstract(batch, length, dtype=jnp.int32), places, abstract(2, dtype=jnp.uint32),
).compile().as_text()
print("kernels", text.count('custom_call_target="tpu_custom_call"'))
print("moves", sum(text.count(f" {{name}}(") for name in ("gather", "scatter", "sort")))
"""


@pytest.mark.parametrize(
    "dtype, batch, length, queries",
    [
        ("jnp.bfloat16", 2, 512, 77),
        ("jnp.bfloat16", 2, 2048, 308),
        ("jnp.bfloat16", 4096, 128, 20),  # what the scalar memory holds of so many
    ],
)
def test_compiles_for_tpu_without_a_gather(dtype, batch, length, queries):
    pytest.importorskip("libtpu")
    settings = dict(
        JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_ACCELERATOR_TYPE="v5litepod-4", TPU_WORKER_HOSTNAMES="localhost",
    )  # fmt: skip
    code = COMPILE.format(dtype=dtype, batch=batch, length=length, queries=queries)
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "kernels 2" in done.stdout and "moves 0" in done.stdout, done.stdout
