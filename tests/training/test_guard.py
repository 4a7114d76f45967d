"""Which steps count, and what is left of those that do not: nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.training.config import GuardConfig, OptimizerConfig
from deberta_jax.training.groups import make_optimizers
from deberta_jax.training.guard import Guard, from_json, to_json
from deberta_jax.training.state import TrainState
from deberta_jax.training.step import make_train_step
from deberta_jax.training.step_units import StepUnits
from tests.training.toys import PLACES, ROWS, Faulty, batch_of

STEPS = 16
WATCHED = ["train/loss", "optim/first/grad_norm", "optim/second/grad_norm"]
CONFIG = OptimizerConfig(learning_rate=0.02, warmup="6 steps", clip_norm=0.5)
SEED = np.uint32(3)


@functools.cache
def optimizers():
    return make_optimizers(CONFIG, Faulty(), StepUnits(1.0, 1.0, STEPS))


@functools.cache
def compiled(microbatches=1, spike=0.0, guarded=True):
    """(step, guard); `spike_window` is 6 steps."""
    guard = Guard(GuardConfig(spike=spike, spike_window=6), WATCHED) if guarded else None
    step = make_train_step(Faulty(), optimizers(), microbatches, guard=guard)
    return jax.jit(step), guard


def start(seed):
    params = Faulty().init(jax.random.key(seed))
    return TrainState(jnp.int32(0), params, optimizers().init(params))


def run(seed, faults, **options):
    """(state, guard state, metrics of each step); `faults` are batches by step, from 0."""
    step, guard = compiled(**options)
    state, guarded, history = start(seed), guard.initial(), []
    for number in range(STEPS):
        batch = faults.get(number, batch_of(seed + number))
        state, metrics = step(state, batch, SEED, guarded)
        guarded = metrics.pop("guard")
        norms = metrics.pop("gradient_norms")
        want = [metrics["optim/first/grad_norm"], metrics["optim/second/grad_norm"]]
        np.testing.assert_array_equal(norms, want)  # each group has one array here
        history.append(jax.device_get(metrics))
    return state, guarded, history


def without(seed, steps, microbatches=1):
    """(state, metrics) of the unguarded step, without those steps: keys are by a step's number."""
    step, _ = compiled(microbatches=microbatches, guarded=False)
    state, history = start(seed), []
    for number in range(STEPS):
        if number in steps:
            continue
        at = TrainState(jnp.int32(number), state.params, state.opt_state)
        state, metrics = step(at, batch_of(seed + number), SEED)
        history.append(jax.device_get(metrics))
    return state, history


def assert_same(state, want):
    jax.tree.map(
        np.testing.assert_array_equal,
        (state.params, state.opt_state),
        (want.params, want.opt_state),
    )


def test_with_no_fault_states_and_metrics_are_those_of_the_unguarded_step(seed):
    state, guarded, history = run(seed, {})
    want, metrics = without(seed, ())
    assert_same(state, want)
    assert int(state.step) == STEPS and int(guarded.skipped) == 0
    assert not any(step.pop("skipped") for step in history)
    assert history == metrics


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e30])
@pytest.mark.parametrize("place", PLACES)
def test_a_step_that_is_not_finite_leaves_nothing(place, value, microbatches, seed):
    """In and after the warm-up, at the first and the last step, in one row of the batch."""
    if value == 1e30 and place == "loss":
        value = np.nan  # such a loss is finite; the norm of such a gradient is not
    row = int(np.random.default_rng(seed).integers(ROWS))
    bad = (0, 3, 9, 10, STEPS - 1)
    faults = {number: batch_of(seed + number, place, value, row) for number in bad}
    state, guarded, history = run(seed, faults, microbatches=microbatches)
    assert [number for number, step in enumerate(history) if step["skipped"]] == list(bad)
    assert (int(guarded.skipped), int(guarded.in_a_row)) == (len(bad), 1)
    assert int(state.step) == STEPS
    want, metrics = without(seed, bad, microbatches)
    assert_same(state, want)
    counted = [step for step in history if not step.pop("skipped")]
    rates = [step["optim/first/learning_rate"] for step in counted]
    for ours, theirs in zip(counted, metrics, strict=True):
        for name, value in theirs.items():
            if not name.endswith("learning_rate"):
                assert ours[name] == value, name
    schedule = optimizers().groups["first"].schedule
    want_rates = [schedule(count) for count in range(len(counted))]
    np.testing.assert_allclose(rates, want_rates, rtol=1e-5)


@pytest.mark.parametrize("place", PLACES)
def test_a_spike_is_skipped_once_there_is_a_mean(place, seed):
    """A fault of 1e4 in one of the rows is finite: it counts in the first steps, which are six."""
    faults = {number: batch_of(seed + number, place, 1e4) for number in (9, 12)}
    state, guarded, history = run(seed, faults, spike=50.0)
    assert [number for number, step in enumerate(history) if step["skipped"]] == [9, 12]
    # Without those steps, by the same program: another one may round otherwise.
    step, guard = compiled(spike=50.0)
    want, judged = start(seed), guard.initial()
    for number in range(STEPS):
        if number not in (9, 12):
            at = TrainState(jnp.int32(number), want.params, want.opt_state)
            want, metrics = step(at, batch_of(seed + number), SEED, judged)
            judged = metrics["guard"]
    assert_same(state, want)
    assert int(guarded.counted) == STEPS - 2
    _, guarded, history = run(seed, {3: faults[9]}, spike=50.0)
    assert not any(step["skipped"] for step in history[:6])


def test_the_statistics_are_the_mean_and_variance_of_the_first_steps(seed):
    values = np.random.default_rng(seed).lognormal(size=9).astype(np.float32)
    guard = Guard(GuardConfig(spike=1e9, spike_window=9), ["a"])
    state = guard.initial()
    for value in values:
        counts, state = guard.judge({"a": jnp.float32(value)}, state)
        assert counts
    np.testing.assert_allclose(state.mean["a"], values.mean(), rtol=1e-5)
    np.testing.assert_allclose(state.variance["a"], values.var(), rtol=1e-4)


def test_a_checkpoint_keeps_it_to_the_last_bit_and_an_older_one_has_none(seed):
    _, guarded, _ = run(seed, {4: batch_of(seed, "loss", np.nan)}, spike=50.0)
    guard = compiled(spike=50.0)[1]
    back = from_json(to_json(guarded), guard.initial())
    assert jax.tree.structure(back) == jax.tree.structure(guard.initial())
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(guarded))
    assert from_json(None, guard.initial()) == guard.initial()
    other = Guard(GuardConfig(spike=50.0), ["train/loss"]).initial()
    assert from_json(to_json(guarded), other) == other._replace(skipped=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("then", "restart"), ("patience", 0), ("spike", -1.0), ("spike", np.nan), ("bundles", -1)],
)
def test_a_setting_that_cannot_be_is_one_line(field, value):
    with pytest.raises(UserError, match=rf"guard\.{field} is {value!r}; it must be"):
        GuardConfig(**{field: value})
