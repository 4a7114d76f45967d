"""The training step: microbatches, randomness, learning."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deberta_jax.objectives.mlm import MaskedLanguageModelling
from deberta_jax.training.groups import Optimizers
from deberta_jax.training.state import TrainState
from deberta_jax.training.step import make_train_step
from tests.model import small

STILL = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
# Compiles in half the time; what it computes is the same.


def batch_of_uneven_rows(config, seed):
    """Eight rows, with 0 to 6 targets in each."""
    batch = small.random_batch(config, seed, batch=8)
    targets = np.random.default_rng(seed).permutation([0, 1, 2, 3, 4, 5, 6, 6])
    weights = np.arange(6) < targets[:, None]
    return batch | {"masked_weights": weights.astype(np.float32)}


def start(params, optimizer, step=0):
    return TrainState(jnp.int32(step), params, optimizer.init(params))


def test_any_number_of_microbatches_makes_the_same_step(seed):
    """Under plain descent at rate 1 the parameters move by the gradient itself."""
    config = small.variant(num_hidden_layers=1, **STILL)
    params, batch = small.random_params(config, seed), batch_of_uneven_rows(config, seed)
    objective, optimizer, rate = MaskedLanguageModelling(config), optax.sgd(1.0), lambda step: 1.0
    states, metrics = {}, {}
    for parts in (1, 2, 4):
        step = jax.jit(make_train_step(objective, Optimizers.single(optimizer, rate), parts))
        states[parts], metrics[parts] = step(start(params, optimizer), batch, 0)
    assert float(metrics[1]["optim/grad_norm"]) > 0.01
    for parts in (2, 4):
        for name, want in metrics[1].items():
            np.testing.assert_allclose(metrics[parts][name], want, rtol=1e-5, err_msg=name)
        jax.tree.map(
            lambda ours, want: np.testing.assert_allclose(ours, want, atol=1e-5),
            states[parts].params,
            states[1].params,
        )


def test_the_loss_is_the_mean_over_the_targets(seed):
    config = small.variant(num_hidden_layers=1, **STILL)
    params, batch = small.random_params(config, seed), batch_of_uneven_rows(config, seed)
    step = make_train_step(
        MaskedLanguageModelling(config), Optimizers.single(optax.sgd(0.0), lambda step: 0.0), 1
    )
    _, metrics = jax.jit(step)(start(params, optax.sgd(0.0)), batch, 0)
    logits = np.asarray(small.logits(config, params, batch), np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    real, labels = batch["masked_weights"] > 0, batch["masked_labels"]
    of_label = np.take_along_axis(chances, labels[..., None], -1)[..., 0]
    assert float(metrics["train/loss"]) == pytest.approx(-np.log(of_label[real]).mean(), rel=1e-4)
    right = (logits.argmax(-1) == labels)[real].mean()
    assert float(metrics["train/mlm_accuracy"]) == pytest.approx(right)


def test_it_learns_a_batch_by_heart_and_reports_it(seed):
    config = small.variant(num_hidden_layers=2, **STILL)
    objective, optimizer = MaskedLanguageModelling(config), optax.adam(3e-3)
    params = nn.unbox(jax.jit(objective.init)(jax.random.key(seed)))
    state, batch = start(params, optimizer), small.random_batch(config, seed)
    step = jax.jit(make_train_step(objective, Optimizers.single(optimizer, lambda step: 3e-3), 1))
    history = []
    for _ in range(60):
        state, metrics = step(state, batch, 0)
        history.append(jax.device_get(metrics))
    assert history[0].keys() == {
        "train/loss",
        "train/mlm_accuracy",
        "optim/grad_norm",
        "optim/learning_rate",
    }
    assert history[0]["train/loss"] == pytest.approx(np.log(config.vocab_size), abs=0.5)
    assert history[-1]["train/loss"] < 0.3 * history[0]["train/loss"]
    assert history[-1]["train/mlm_accuracy"] > 0.8
    assert int(state.step) == 60


def test_randomness_is_of_the_seed_and_the_step_alone(seed):
    config = small.variant(num_hidden_layers=1, hidden_dropout_prob=0.3)
    params, batch = small.random_params(config, seed), small.random_batch(config, seed)
    objective, optimizer = MaskedLanguageModelling(config), optax.sgd(0.0)
    step = jax.jit(make_train_step(objective, Optimizers.single(optimizer, lambda step: 0.0), 1))

    def loss(seed, at):
        _, metrics = step(start(params, optimizer, at), batch, np.uint32(seed))
        return float(metrics["train/loss"])

    assert loss(seed, 5) == loss(seed, 5)
    assert len({loss(seed, 5), loss(seed, 6), loss(seed + 1, 5)}) == 3
