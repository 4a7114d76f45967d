"""The model's options: computation types, rematerialisation, dropout, sizes, mistakes."""

import functools

import jax
import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.flops import masked_lm_flops
from deberta_jax.objectives.mlm import MaskedLanguageModelling
from tests.model import small


def loss_and_gradient(config, params, batch, rng=None, **compute):
    return _compiled(config, ComputeConfig(**compute))(params, batch, rng)


@functools.cache
def _compiled(config, compute):
    objective = MaskedLanguageModelling(config, compute=compute)

    def loss(params, batch, rng):
        weights, train = objective.weights(batch), rng is not None
        return objective.loss(params, batch, weights, rng, train)[0]

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_number(remat, seed):
    params, batch = small.random_params(small.SMALL, seed), small.random_batch(small.SMALL, seed)
    rng = jax.random.key(seed)
    want = loss_and_gradient(small.SMALL, params, batch, rng)
    got = loss_and_gradient(small.SMALL, params, batch, rng, remat=remat)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=2e-5), got, want)


def test_bfloat16_stays_near_float32(seed):
    batch, params = small.random_batch(small.SMALL, seed), small.random_params(small.SMALL, seed)
    want = np.asarray(small.logits(small.SMALL, params, batch))
    got = np.asarray(small.logits(small.SMALL, params, batch, dtype="bfloat16"))
    assert got.dtype.name == "bfloat16"
    got = got.astype(np.float32)
    assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)
    _, gradient = loss_and_gradient(small.SMALL, params, batch, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}


def test_dropout_runs_in_training_only(seed):
    params, batch = small.random_params(small.SMALL, seed), small.random_batch(small.SMALL, seed)
    losses = [
        float(loss_and_gradient(small.SMALL, params, batch, rng)[0])
        for rng in (None, None, jax.random.key(0), jax.random.key(0), jax.random.key(1))
    ]
    assert losses[0] == losses[1] and losses[2] == losses[3]
    assert len({losses[0], losses[2], losses[4]}) == 3


def test_loss_is_the_mean_cross_entropy_of_the_weighted_targets(seed):
    params, batch = small.random_params(small.SMALL, seed), small.random_batch(small.SMALL, seed)
    loss, _ = loss_and_gradient(small.SMALL, params, batch)
    logits = np.asarray(small.logits(small.SMALL, params, batch), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_probs, batch["masked_labels"][..., None], -1)[..., 0]
    weights = batch["masked_weights"]
    np.testing.assert_allclose(loss, -(picked * weights).sum() / weights.sum(), rtol=1e-5)


def test_parameters_of_the_released_v3_models():
    """Backbone totals of the published checkpoints, from shapes alone."""
    released = {
        (12, 384, 6, 1536): 70_682_112,
        (6, 768, 12, 3072): 141_304_320,
        (12, 768, 12, 3072): 183_831_552,
        (24, 1024, 16, 4096): 434_012_160,
    }
    for (layers, hidden, heads, inner), total in released.items():
        config = ModelConfig(
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=inner,
        )
        shapes = jax.eval_shape(MaskedLanguageModelling(config).init, jax.random.key(0))
        shapes.pop("lm_head")
        shapes["embeddings"].pop("position_embeddings")
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == total


def test_flops_are_those_that_xla_counts_without_the_skew(seed):
    """The analytic count against XLA's own, for a model without relative terms or scan."""
    config = small.variant(
        pos_att_type=(), position_biased_input=True, num_hidden_layers=2, hidden_size=64
    )
    params, batch = small.random_params(config, seed), small.random_batch(config, seed)
    objective = MaskedLanguageModelling(config)

    def loss(p):
        return objective.loss(p, batch, objective.weights(batch), None, train=False)[0]

    counted = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(4 * masked_lm_flops(config, 40, 6), rel=0.15)


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(hidden_size=50), "model.hidden_size"),
        (dict(pos_att_type=("c2q",)), "model.pos_att_type"),
        (dict(conv_kernel_size=4), "model.conv_kernel_size"),
        (dict(position_buckets=512, max_relative_positions=128), "model.position_buckets"),
        (dict(position_buckets=1), "model.position_buckets"),
        (dict(position_buckets=-1), "model.position_buckets"),
        (dict(num_hidden_layers=0), "model.num_hidden_layers"),
        (dict(model_type="deberta"), "model.share_att_key"),
    ],
)
def test_an_impossible_architecture_names_its_field(options, named):
    with pytest.raises(UserError, match=named):
        small.variant(**options)


@pytest.mark.parametrize("options", [dict(remat="some"), dict(unroll=0), dict(attention="fast")])
def test_an_impossible_computation_names_its_field(options):
    (field,) = options
    with pytest.raises(UserError, match=rf"compute\.{field}"):
        ComputeConfig(**options)
