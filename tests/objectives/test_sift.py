"""SiFT against the same procedure in PyTorch, on the same weights in `transformers`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deberta_jax
from deberta_jax.objectives import sift
from deberta_jax.objectives.config import FinetuneConfig
from deberta_jax.objectives.criteria import symmetric_kl
from deberta_jax.objectives.finetuning import FineTuning
from tests.interop import released
from tests.interop.released import torch

# Larger than the paper's: differences that float32 tells apart.
SETTINGS = FinetuneConfig(
    sift_weight=5.0, sift_perturbation=0.3, sift_learning_rate=0.05, sift_steps=2
)
STILL = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def symmetric_kl_by_torch(found, given):
    """The released loss: two cross-entropies, each with the other side's probabilities fixed."""
    p, q = (torch.log_softmax(x, -1) for x in (found, given))
    return (q.exp().detach() * -p).sum(-1) + (p.exp().detach() * -q).sum(-1)


def perturbed_by_torch(model, ids, mask, delta):
    """Logits with `delta` between a LayerNorm without weights and the embeddings' own."""

    def before(module, inputs):
        del module
        clean = torch.nn.functional.layer_norm(inputs[0], inputs[0].shape[-1:], eps=1e-7)
        return (clean.detach() + delta,)

    hook = model.deberta.embeddings.LayerNorm.register_forward_pre_hook(before)
    try:
        return model(ids, attention_mask=mask).logits
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(a classifier of transformers, our model, its parameters, tokens, mask)."""
    theirs = released.make("v3", "ForSequenceClassification", 7, num_labels=3, **STILL)
    directory = tmp_path_factory.mktemp("classifier")
    theirs.save_pretrained(directory)
    model, params = deberta_jax.load_pretrained(directory, "sequence_classification")
    ids, mask = released.padded(7, 12, ("right",))
    return theirs, model, params, ids, mask


def test_perturbation_and_its_divergence_are_pytorch_s(pair, seed):
    theirs, model, params, ids, mask = pair
    rng = np.random.default_rng(seed)
    first = np.clip(0.3 * rng.normal(size=(*ids.shape, 64)), -0.6, 0.6).astype(np.float32)

    tids, tmask, delta = torch.tensor(ids).long(), torch.tensor(mask), torch.tensor(first)
    with torch.no_grad():
        clean = theirs(tids, attention_mask=tmask).logits
    for _ in range(SETTINGS.sift_steps):
        delta.requires_grad_(True)
        apart = symmetric_kl_by_torch(perturbed_by_torch(theirs, tids, tmask, delta), clean)
        (gradient,) = torch.autograd.grad(apart.sum(), delta)
        largest = gradient.abs().max(-1, keepdim=True)[0]
        delta = (delta + SETTINGS.sift_learning_rate * gradient / (1e-6 + largest)).detach()
    found = perturbed_by_torch(theirs, tids, tmask, delta)
    kl = torch.nn.functional.kl_div
    p, q = torch.log_softmax(found, -1), torch.log_softmax(clean, -1)
    want = kl(p, q, log_target=True, reduction="none").sum(-1)
    want += kl(q, p, log_target=True, reduction="none").sum(-1)

    def logits(params, delta=None):
        if delta is None:
            return model.apply({"params": params}, ids, mask)
        with sift.perturbed(delta):
            return model.apply({"params": params}, ids, mask)

    @jax.jit
    def ours(params, first):
        given = logits(params)

        def gain(delta, _):
            return jnp.sum(symmetric_kl(logits(params, delta), given))

        delta = sift.worst_perturbation(gain, first, [None, None], SETTINGS)
        return delta, symmetric_kl(logits(params, delta), given)

    got_delta, got = ours(params, first)
    assert np.abs(np.asarray(got_delta) - first).max() > 0.04
    real = mask.astype(bool)
    np.testing.assert_allclose(np.asarray(got_delta)[real], delta.numpy()[real], atol=2e-3)
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=2e-3, atol=1e-6)


def test_the_first_perturbation_is_clipped_noise(seed):
    noise = np.asarray(sift.first_perturbation(jax.random.key(seed), (400, 50), FinetuneConfig()))
    assert np.abs(noise).max() == pytest.approx(2e-2) and abs(noise.mean()) < 1e-3
    assert noise.std() == pytest.approx(0.959e-2, rel=0.03)  # of a normal clipped at two deviations


def test_a_gradient_that_is_not_finite_moves_nothing():
    delta, gradient = jnp.ones((1, 2, 3)), jnp.full((1, 2, 3), jnp.inf)
    np.testing.assert_array_equal(sift.ascended(delta, gradient, FinetuneConfig()), delta)


def batch_of(ids, mask, seed):
    labels = np.random.default_rng(seed).integers(0, 3, len(ids)).astype(np.int32)
    weights = np.ones(len(ids), np.float32)
    return {"input_ids": ids, "segment_ids": mask, "labels": labels, "weights": weights}


def test_weight_zero_is_the_plain_loss_exactly_and_another_adds_to_it(pair, seed):
    _, model, params, ids, mask = pair
    batch, rng = batch_of(ids, mask, seed), jax.random.key(seed)

    def loss(weight):
        settings = FinetuneConfig(classifier_dropout=0.0, sift_weight=weight)
        objective = FineTuning(model.config, "classification", 3, settings)

        def value(params):
            return objective.loss(params, batch, objective.weights(batch), rng, train=True)

        (total, sums), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(params)
        return float(total), sums, gradients

    (none, sums, plain), (some, more, other) = loss(0.0), loss(5.0)
    assert "sift" not in sums and none == pytest.approx(float(sums["loss"]) / len(ids))
    logits = np.asarray(jax.jit(model.apply)({"params": params}, ids, mask), np.float64)
    want = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(ids)), batch["labels"]]
    assert none == pytest.approx(want.mean(), rel=1e-5)
    assert float(more["sift"]) > 0 and float(more["loss"]) == float(sums["loss"])
    assert some == pytest.approx(none + 5 * float(more["sift"]) / len(ids), rel=1e-5)
    # Through the perturbed text the loss does not reach the embeddings; the plain text's does.
    table = "embeddings", "word_embeddings", "embedding"
    assert np.abs(_leaf(other, table) - _leaf(plain, table)).max() < 0.1
    kernel = "classifier", "kernel"
    assert np.abs(_leaf(other, kernel) - _leaf(plain, kernel)).max() > 0


def _leaf(tree, path):
    for name in path:
        tree = tree[name]
    return np.asarray(tree)
