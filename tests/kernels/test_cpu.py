"""The compiled CPU kernels against the formula: every option, tile and edge of a long sequence."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import kernels
from deberta_jax.kernels import attention, cpu, xla
from deberta_jax.kernels.cpu import build
from deberta_jax.kernels.protocol import AttentionCall
from deberta_jax.kernels.relative import Relative
from deberta_jax.kernels.xla import dropout as xla_dropout
from tests.kernels.test_gpu import (
    BOTH,
    BUCKETED,
    CLAMPED,
    UNSATURATED,
    gathered,
    random_case,
    rows_of,
    value_and_gradients,
)


@pytest.fixture(autouse=True)
def built():
    assert build.problem() is None


def attend(operands, segments, positions, implementation=cpu, **options):
    query, key, value, *tables = operands
    relative = None
    if any(table is not None for table in tables):
        relative = Relative(*tables, rows_of(positions, key.shape[1]))
    segments = jnp.asarray(segments)
    call = AttentionCall(query, key, value, relative, segments, segments, **options)
    return implementation.attention(call)


def assert_agree(case, positions, kept=None, **options):
    operands, weight, segments = case
    got = value_and_gradients(lambda x: attend(x, segments, positions, **options), operands, weight)
    rate, _ = options.pop("dropout_rate", 0), options.pop("dropout_rng", None)
    formula = functools.partial(gathered, kept=kept, rate=rate, **options)
    want = value_and_gradients(lambda x: formula(x, segments, positions), operands, weight)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == np.float32
        np.testing.assert_allclose(g, w, atol=2e-5 * max(1, float(np.abs(w).max())))


@pytest.mark.parametrize(
    ("length", "size", "positions", "terms"),
    [
        (150, 32, BUCKETED, BOTH),
        (150, 32, BUCKETED, ("c2p",)),
        (150, 32, BUCKETED, ("p2c",)),
        (150, 32, BUCKETED, ()),
        (150, 80, CLAMPED, BOTH),
        (300, 16, UNSATURATED, BOTH),
        (580, 8, CLAMPED, BOTH),  # several blocks, most keys beyond reach on either side
        (13, 64, BUCKETED, BOTH),
    ],
    ids=str,
)
def test_values_and_gradients(length, size, positions, terms, seed):
    assert_agree(random_case(seed, length, positions, terms, size), positions)


def test_one_token(seed):
    operands, weight, _ = random_case(seed, 30)
    operands = [x[:, :1] if i < 3 else x for i, x in enumerate(operands)]
    assert_agree((operands, weight[:, :1], np.ones((2, 1), np.int32)), BUCKETED)


def test_causal(seed):
    assert_agree(random_case(seed, 300), BUCKETED, causal=True)


def test_dropout_is_that_of_plain_xla_in_both_passes(seed):
    case, rate, rng = random_case(seed, 300), 0.3, jax.random.key(seed)
    kept = xla_dropout.keep(xla_dropout.seeds(rng, 2, 2), rate, 0, 300, 300).swapaxes(0, 1)
    assert abs(np.mean(kept) - (1 - rate)) < 0.01
    assert_agree(case, BUCKETED, kept, dropout_rate=rate, dropout_rng=rng)
    outputs = [
        attend(case[0], case[2], BUCKETED, implementation, dropout_rate=rate, dropout_rng=rng)
        for implementation in (cpu, xla)
    ]
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_what_is_hidden_leaves_no_trace(seed):
    """NaNs in the padding reach no other token, in either pass."""
    operands, weight, segments = random_case(seed)
    hidden = (segments == 0)[..., None, None]
    poisoned = [np.where(hidden, np.nan, x) for x in operands[:3]] + operands[3:]
    weight = np.where(hidden, 0, weight)

    def run(operands):
        output = attend([jnp.nan_to_num(x) for x in operands], segments, BUCKETED)
        return jnp.where(hidden, 0, output)

    got, want = (value_and_gradients(run, x, weight) for x in (poisoned, operands))
    np.testing.assert_allclose(got[0], want[0], atol=1e-6)
    assert not np.any(attend(operands, np.zeros_like(segments), BUCKETED))


def test_the_same_numbers_twice(seed):
    """Sums are taken in one order, whatever thread is first."""
    operands, weight, segments = random_case(seed, 300)
    runs = [
        value_and_gradients(lambda x: attend(x, segments, BUCKETED), operands, weight)
        for _ in range(3)
    ]
    for leaves in zip(*map(jax.tree.leaves, runs), strict=True):
        assert len({np.asarray(leaf).tobytes() for leaf in leaves}) == 1


def test_auto_takes_it_and_says_what_it_does_not_take(seed, monkeypatch, caplog):
    operands, _, segments = random_case(seed)
    query, key, value, *tables = operands
    relative = Relative(*tables, rows_of(BUCKETED, key.shape[1]))
    run = jax.jit(
        lambda x: kernels.disentangled_attention(x, key, value, relative, segments, segments)
    )
    assert build.FORWARD in run.lower(query).as_text()
    with pytest.raises(ValueError, match="takes float32, not bfloat16"):
        content = (jnp.asarray(x, jnp.bfloat16) for x in (query, key, value))
        cpu.IMPLEMENTATION.require(AttentionCall(*content, None, segments, segments))
    attention._log_once.cache_clear()
    monkeypatch.setattr(build, "problem", lambda: "there is no C++ compiler")
    kernels.disentangled_attention(query, key, value, relative, segments, segments)
    assert [record.getMessage() for record in caplog.records] == [
        "attention falls back to plain XLA: the CPU kernel could not be built: "
        "there is no C++ compiler"
    ]


@pytest.mark.parametrize(
    ("compiler", "expected"),
    [("/nowhere/c++", "/nowhere/c++"), ("false", "false failed: status 1")],
)
def test_without_a_working_compiler(compiler, expected, tmp_path):
    """In a process of its own: what was built is remembered."""
    done = subprocess.run(
        [sys.executable, "-c", "from deberta_jax.kernels.cpu import build; print(build.problem())"],
        env={"PATH": "/usr/bin:/bin", "CXX": compiler, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert expected in done.stdout, done.stderr
