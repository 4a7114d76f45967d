"""The losses of the tasks against formulas in NumPy; padding and filler rows count for nothing."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from deberta_jax.model.depth import depths
from deberta_jax.objectives.config import FinetuneConfig
from deberta_jax.objectives.criteria import Spans
from deberta_jax.objectives.finetuning import KINDS, FineTuning
from tests.model import small


def random_batch(kind, seed, length=12):
    """Three texts of different lengths and a row of filler, with targets."""
    rng = np.random.default_rng(seed)
    shape = (4, 2, length) if kind == "multiple_choice" else (4, length)
    ids = rng.integers(4, small.SMALL.vocab_size, shape).astype(np.int32)
    segments = np.zeros(shape, np.int32)
    for row in range(3):
        segments[row, ..., : rng.integers(5, length + 1)] = 1
    batch = {
        "input_ids": ids,
        "segment_ids": segments,
        "weights": np.array([1, 1, 1, 0], np.float32),
    }
    if kind == "span":
        return batch | {name: rng.integers(0, 5, 4).astype(np.int32) for name in ("starts", "ends")}
    if kind == "multi_label":
        return batch | {"label_set": rng.integers(0, 2, (4, 2)).astype(np.float32)}
    if kind == "regression":
        return batch | {"labels": rng.normal(size=4).astype(np.float32)}
    if kind == "token_classification":
        weights = (segments * rng.integers(0, 2, shape)).astype(np.float32)
        weights[0, 1] = 1
        return batch | {"labels": rng.integers(0, 2, shape).astype(np.int32), "weights": weights}
    return batch | {"labels": rng.integers(0, 2, 4).astype(np.int32)}


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def loss_by_formula(kind, logits, batch):
    rows = range(3)
    if kind == "regression":
        return np.mean([(logits[r, 0] - batch["labels"][r]) ** 2 for r in rows])
    if kind == "multi_label":
        shares, sets = 1 / (1 + np.exp(-logits[:3])), batch["label_set"][:3]
        return -np.mean(np.log(np.where(sets > 0, shares, 1 - shares)))
    if kind == "span":
        found = []
        for r in rows:
            real = batch["segment_ids"][r].astype(bool)
            for column, name in enumerate(("starts", "ends")):
                found.append(-log_softmax(logits[r, real, column])[batch[name][r]])
        return np.mean(found)
    if kind == "token_classification":
        places = np.argwhere(batch["weights"] > 0)
        each = [-log_softmax(logits[r, t])[batch["labels"][r, t]] for r, t in places]
        return np.mean(each)
    return np.mean([-log_softmax(logits[r])[batch["labels"][r]] for r in rows])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_its_formula_over_what_counts(kind, seed):
    config = small.variant(num_hidden_layers=1)
    objective = FineTuning(config, kind, 1 if kind == "regression" else 2, FinetuneConfig())
    params = nn.unbox(jax.jit(objective.init)(jax.random.key(seed)))
    params = jax.tree.map(lambda x: x + 0.05, params)
    batch = random_batch(kind, seed)

    @jax.jit
    def both(params, batch):
        weights = objective.weights(batch)
        loss, sums = objective.loss(params, batch, weights, None, train=False)
        return objective.logits(params, batch), loss, objective.summarize(sums, weights)

    logits, loss, metrics = both(params, batch)
    want = loss_by_formula(kind, np.asarray(logits, np.float64), batch)
    assert float(loss) == pytest.approx(want, rel=1e-4)
    assert float(metrics["loss"]) == pytest.approx(want, rel=1e-4)
    assert ("accuracy" in metrics) == (kind != "regression")
    # Whatever stands under padding and in filler rows changes nothing.
    noise = np.random.default_rng(seed + 1).integers(4, config.vocab_size, batch["input_ids"].shape)
    other = np.where(batch["segment_ids"] > 0, batch["input_ids"], noise).astype(np.int32)
    changed = both(params, batch | {"input_ids": other})[1]
    assert float(changed) == pytest.approx(float(loss), rel=1e-5)


def test_padding_is_no_part_of_a_span_s_divergence(seed):
    rng = np.random.default_rng(seed)
    batch = random_batch("span", seed)
    found, given = rng.normal(size=(2, 4, 12, 2)).astype(np.float32)
    other = np.where(batch["segment_ids"][..., None] > 0, found, 99.0).astype(np.float32)
    one, two = (np.asarray(Spans().divergence(x, given, batch)) for x in (found, other))
    np.testing.assert_allclose(one[:3], two[:3], rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"conv_kernel_size": 3}], ids=["v3", "convolution"])
def test_depths_go_from_the_embeddings_to_the_head(options):
    config = small.variant(num_hidden_layers=4, **options)
    objective = FineTuning(config, "classification", 2, FinetuneConfig())
    shapes = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))
    found = depths(config, shapes)
    first = 1 + bool(options)
    scanned = found["encoder"]["layers"]["layer"]["output"]["kernel"]
    assert scanned.shape == (4 - first, 1, 1)
    assert list(scanned[:, 0, 0]) == list(range(first, 4))
    assert found["encoder"]["last_layer"]["output"]["kernel"] == 4
    assert found["classifier"]["kernel"] == found["pooler"]["dense"]["bias"] == 5
    assert found["embeddings"]["word_embeddings"]["embedding"] == 0
    assert found["encoder"]["relative_embeddings"]["embedding"] == 0
    if options:
        assert found["encoder"]["first_layer"]["output"]["kernel"] == 1


def test_the_classifier_has_a_dropout_of_its_own(seed):
    config = small.variant(
        num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    batch, logits = random_batch("classification", seed), {}
    for rate in (0.0, 0.5):
        settings = FinetuneConfig(classifier_dropout=rate)
        objective = FineTuning(config, "classification", 2, settings)
        params = nn.unbox(jax.jit(objective.init)(jax.random.key(1)))
        dropped = jax.jit(functools.partial(objective.logits, train=True))
        logits[rate] = dropped(params, batch, jax.random.key(seed))
        plain = jax.jit(objective.logits)(params, batch)
    np.testing.assert_allclose(logits[0.0], plain, atol=1e-6)
    assert np.abs(logits[0.5] - plain).max() > 1e-4
