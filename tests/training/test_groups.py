"""Groups of parameters with an optimizer each, and steps of several stages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deberta_jax.errors import UserError
from deberta_jax.training.config import OptimizerConfig
from deberta_jax.training.groups import GroupOptimizer, Optimizers, make_optimizers
from deberta_jax.training.state import TrainState
from deberta_jax.training.step import make_train_step
from deberta_jax.training.step_units import StepUnits
from tests.training.toys import TwoLines, data

UNITS = StepUnits(100.0, 10.0, 20)


def started(config, seed):
    objective = TwoLines()
    optimizers = make_optimizers(config, objective, UNITS)
    params = objective.init(jax.random.key(seed))
    return objective, optimizers, TrainState(jnp.int32(0), params, optimizers.init(params))


def test_each_stage_is_an_optimizer_s_own_step_on_what_the_stage_before_left(seed):
    """Held to the same two steps by plain optax: own clip, own rate, the updated first line."""
    config = OptimizerConfig(learning_rate=0.1, warmup="0 steps", clip_norm=0.5)
    objective, optimizers, state = started(config, seed)
    batch = data(seed)
    after, metrics = make_train_step(objective, optimizers, 1)(state, batch, np.uint32(0))
    params = {name: state.params[name]["slope"] for name in objective.groups}

    def plain(name, rate, target):
        def loss(slope):
            return jnp.mean((batch["x"] @ slope - target) ** 2)

        grads = jax.grad(loss)(params[name])
        chain = optax.chain(
            optax.clip_by_global_norm(0.5), optax.adamw(rate, eps=1e-6, weight_decay=0.01)
        )
        updates, _ = chain.update(grads, chain.init(params[name]), params[name])
        return optax.apply_updates(params[name], updates), jnp.linalg.norm(grads)

    before = batch["x"] @ params["first"]
    first, first_norm = plain("first", 0.1, batch["y"])
    second, second_norm = plain("second", 1.0, before + batch["x"] @ first)
    np.testing.assert_allclose(after.params["first"]["slope"], first, rtol=1e-5)
    np.testing.assert_allclose(after.params["second"]["slope"], second, rtol=1e-5)
    np.testing.assert_allclose(metrics["optim/first/grad_norm"], first_norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["optim/second/grad_norm"], second_norm, rtol=1e-5)
    assert float(metrics["optim/second/learning_rate"]) == pytest.approx(1.0)
    assert float(metrics["train/noise"]) != float(metrics["train/noise_2"])


def test_microbatches_hand_each_row_s_additions_on(seed):
    """Several parts make the step of one, though the second stage reads what the first made."""
    results = []
    for parts in (1, 2, 4):
        objective, optimizers, state = started(OptimizerConfig(warmup="0 steps"), seed)
        step = jax.jit(make_train_step(objective, optimizers, parts))
        after, metrics = step(state, data(seed), np.uint32(0))
        results.append((after.params, metrics["train/second"]))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), results[0], other)


def test_a_parameter_of_two_groups_has_two_states(seed):
    rate = GroupOptimizer(optax.adam(0.1), lambda _: 0.1)
    params = {"w": jnp.ones(3), "v": jnp.ones(3), "u": jnp.ones(3)}
    labels = {"w": "a", "v": "a+b", "u": "b"}
    optimizers = Optimizers({"a": rate, "b": rate}, labels)
    assert optimizers.select(params, ["b"]).keys() == {"v", "u"}
    state = optimizers.init(params)
    grads = {"w": params["w"], "v": params["v"]}
    updates, after = optimizers.update(["a"], grads, state, params)
    assert updates.keys() == {"w", "v"}
    jax.tree.map(np.testing.assert_array_equal, after["b"], state["b"])
    assert int(after["a"][0].count) == 1 and float(after["a"][0].mu["v"][0]) > 0


def test_one_group_alone_has_the_state_of_its_transformation():
    params = {"a": {"w": jnp.ones(2)}}
    adam = optax.adam(0.1)
    optimizers = Optimizers.single(adam, lambda _: 0.1)
    state = optimizers.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(adam.init(params))
    updates, state = optimizers.update(["default"], params, state, params)
    want, want_state = adam.update(params, adam.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, (updates, state), (want, want_state))


def test_every_parameter_is_in_a_group_and_every_group_has_one():
    group = GroupOptimizer(optax.identity(), lambda _: 0.1)
    for labels in ({"w": "a", "v": "c"}, {"w": "a", "v": "a"}):
        with pytest.raises(ValueError, match="labelled"):
            Optimizers({"a": group, "b": group}, labels)


def test_what_is_named_does_not_decay_and_a_name_that_is_none_is_refused(seed):
    config = OptimizerConfig(warmup="0 steps", learning_rate=0.5, no_decay=("second",))
    _, optimizers, state = started(config, seed)
    nothing = jax.tree.map(jnp.zeros_like, state.params)
    names = optimizers.groups
    updates, _ = optimizers.update(names, nothing, state.opt_state, state.params)
    np.testing.assert_array_equal(updates["second"]["slope"], 0)
    want = -0.5 * 0.01 * state.params["first"]["slope"]
    np.testing.assert_allclose(updates["first"]["slope"], want, rtol=1e-5)
    with pytest.raises(UserError, match=r"optimizer\.no_decay has 'thrid'.*first, second, slope"):
        started(dataclasses.replace(config, no_decay=("thrid",)), seed)
