"""Replaced-token detection: whose gradient is whose, what is labelled, and the step itself."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from deberta_jax.data.config import MaskingConfig
from deberta_jax.errors import UserError
from deberta_jax.interop.pretrained import to_state_dict
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.objectives import detection
from deberta_jax.objectives.config import RtdConfig
from deberta_jax.objectives.rtd import ReplacedTokenDetection
from deberta_jax.training.config import OptimizerConfig
from deberta_jax.training.groups import make_optimizers
from deberta_jax.training.state import TrainState
from deberta_jax.training.step import make_train_step
from deberta_jax.training.step_units import StepUnits
from tests.devices import on_eight_devices
from tests.model import small

STILL = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
UNITS = StepUnits(1000.0, 100.0, 50)


def make(layers=2, config=None, **settings):
    config = config or small.variant(num_hidden_layers=layers, **STILL)
    sections = {"compute": ComputeConfig(), "masking": MaskingConfig(num_predictions=6)}
    return ReplacedTokenDetection(config, rtd=RtdConfig(**settings), **sections)


def noisy(objective, seed):
    """Parameters with noise everywhere, E_delta included."""
    shapes = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))
    rng = np.random.default_rng(seed)

    def noise(path, leaf):
        mean = float(path[-1].key == "scale")
        return jnp.asarray(rng.normal(mean, 0.1, leaf.shape), jnp.float32)

    return jax.tree.map_with_path(noise, shapes)


def filler(objective):
    """`(params, batch, rng) -> the text that the generator fills in`."""

    def fill(params, batch, rng):
        return objective._generator(params, batch, objective.weights(batch), rng, True)[1][1]

    return jax.jit(fill)


def test_e_delta_is_zero_at_first_and_no_table_is_there_twice(seed):
    for sharing, tables in (("gdes", 2), ("es", 1), ("nes", 2)):
        params = nn.unbox(jax.eval_shape(make(sharing=sharing).init, jax.random.key(seed)))
        shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
        assert shapes.count((small.SMALL.vocab_size, small.SMALL.hidden_size)) == tables
    params = nn.unbox(jax.jit(make(layers=1).init)(jax.random.key(seed)))
    assert not np.any(params["delta"]["word_embeddings"]["embedding"])


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
def test_whose_gradient_is_whose(sharing, seed):
    """By the generator's parameters the RTD loss has none, but of the table under es; by all that
    is the discriminator's, E_delta included, the MLM loss has none."""
    objective = make(layers=1, sharing=sharing, decoupled=False)
    params, batch = noisy(objective, seed), small.random_batch(small.SMALL, seed)
    weights, rng = objective.weights(batch), jax.random.key(seed)

    @jax.jit
    def gradients(params):
        replaced = objective._generator(params, batch, weights, rng, True)[1][1]
        text = batch | replaced
        mlm = jax.grad(lambda p: objective._generator(p, batch, weights, rng, True)[0])(params)
        rtd = jax.grad(lambda p: objective._discriminator(p, text, weights, rng, True)[0])(params)
        both = jax.grad(lambda p: objective.loss(p, batch, weights, rng, True)[0])(params)
        return mlm, rtd, both

    mlm, rtd, both = (flatten_dict(jax.device_get(g)) for g in gradients(params))
    table = ("generator", "embeddings", "word_embeddings", "embedding")
    for path in mlm:
        if path[0] == "generator":
            assert np.any(mlm[path]) and np.any(rtd[path]) == (sharing == "es" and path == table)
        else:
            assert np.any(rtd[path]) and not np.any(mlm[path]), path
        if path[0] == "generator" and path != table:
            continue
        # Of the joint loss, the sum, with the discriminator's weight. It draws by another key.
        if path == table and sharing == "es":
            assert np.any(both[path] - mlm[path])


def test_labels_and_text(seed):
    """Only masked positions can be replaced; a sample that equals the original is original."""
    batch = small.random_batch(small.SMALL, seed)
    labels = batch["masked_labels"]
    rng = np.random.default_rng(seed)
    sampled = np.where(rng.random(labels.shape) < 0.5, labels, (labels + 1) % 120)
    made = jax.device_get(detection.filled_in(batch, sampled))
    ids, replaced = batch["input_ids"].copy(), np.zeros(batch["input_ids"].shape, bool)
    for row, column in zip(*np.nonzero(batch["masked_weights"]), strict=True):
        position = batch["masked_positions"][row, column]
        ids[row, position] = sampled[row, column]
        replaced[row, position] = sampled[row, column] != labels[row, column]
    np.testing.assert_array_equal(made["replaced_ids"], ids)
    np.testing.assert_array_equal(made["is_replaced"], replaced)
    assert 0 < replaced.sum() < batch["masked_weights"].sum()


def test_scores_are_those_of_sklearn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (16, 64)).astype(np.float32)
    replaced = rng.random((16, 64)) < 1 / (1 + np.exp(-logits / 2))
    counts = rng.random((16, 64)) < 0.8
    sums = jax.jit(detection.sums)(logits, replaced, counts)
    got = detection.metrics(sums, counts.sum())
    labels, scores = replaced[counts], logits[counts]
    chances = 1 / (1 + np.exp(-scores.astype(np.float64)))
    want = {
        "rtd_loss": metrics.log_loss(labels, chances),
        "rtd_accuracy": metrics.accuracy_score(labels, scores > 0),
        "rtd_precision": metrics.precision_score(labels, scores > 0),
        "rtd_recall": metrics.recall_score(labels, scores > 0),
        "rtd_f1": metrics.f1_score(labels, scores > 0),
        "all_original_accuracy": 1 - labels.mean(),
        "replaced_share": labels.mean(),
    }
    for name, value in want.items():
        assert float(got[name]) == pytest.approx(value, rel=1e-4), name
    # By bins: pairs of one bin count as half right.
    assert float(got["rtd_auc"]) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=5e-3)


def test_documents_of_a_packed_row_do_not_see_each_other(seed):
    """Another second document changes no label and no logit of the first one's tokens."""
    objective = make(layers=1)
    params = noisy(objective, seed)
    batch = small.random_batch(small.SMALL, seed)
    other = np.random.default_rng(seed + 1).integers(4, 119, batch["input_ids"].shape)
    changed = batch | {
        "input_ids": np.where(batch["segment_ids"] == 2, other, batch["input_ids"]).astype("i4")
    }

    @jax.jit
    def run(batch):
        weights, rng = objective.weights(batch), jax.random.key(seed)
        _, (_, replaced) = objective._generator(params, batch, weights, rng, False)
        variables = objective._discriminator_variables(params)
        text = replaced["replaced_ids"], batch["segment_ids"], batch["position_ids"]
        return replaced, objective.models["discriminator"].apply(variables, *text)

    (one, logits), (two, logits_2) = (jax.device_get(run(b)) for b in (batch, changed))
    first = batch["segment_ids"] == 1
    np.testing.assert_array_equal(one["is_replaced"][first], two["is_replaced"][first])
    np.testing.assert_array_equal(one["replaced_ids"][first], two["replaced_ids"][first])
    np.testing.assert_allclose(logits[first], logits_2[first], atol=1e-6)
    assert np.abs(logits - logits_2)[batch["segment_ids"] == 2].max() > 1e-3


def test_the_exported_table_is_the_sum_and_gives_the_same_logits(seed):
    for sharing in ("gdes", "es", "nes"):
        objective = make(layers=1, sharing=sharing)
        params, batch = noisy(objective, seed), small.random_batch(small.SMALL, seed)
        text = batch["input_ids"], batch["segment_ids"], batch["position_ids"]
        model = objective.models["discriminator"]
        want = jax.jit(model.apply)(objective._discriminator_variables(params), *text)
        whole = {"params": objective.params_of(params, "discriminator")}
        np.testing.assert_array_equal(jax.jit(model.apply)(whole, *text), want)


@pytest.mark.parametrize("steps", [1, 3])
def test_decoupled_steps_are_those_of_pytorch(steps, seed):
    """Parameters, E_delta and both Adam states, on packed rows, in float64 over there."""
    torch_rtd = pytest.importorskip("tests.objectives.torch_rtd")
    torch = torch_rtd.torch
    config = OptimizerConfig(learning_rate=1e-4, warmup="0 steps", clip_norm=1.0)
    objective = make(layers=4, discriminator_weight=10.0, discriminator_learning_rate=3e-4)
    params = noisy(objective, seed)
    params["delta"] = jax.tree.map(lambda x: 0.1 * x, params["delta"])
    optimizers = make_optimizers(config, objective, UNITS)
    state = TrainState(jnp.int32(0), params, optimizers.init(params))
    step = jax.jit(make_train_step(objective, optimizers, 1))
    filled = filler(objective)

    def released(tree, name):
        return to_state_dict(objective.models[name], objective.params_of(tree, name))

    generator = torch_rtd.Generator(objective.generator_config, released(params, "generator"))
    with_delta = released(params, "discriminator")
    discriminator = torch_rtd.Discriminator(objective.config, with_delta)
    table = "deberta.embeddings.word_embeddings.weight"
    delta = torch.nn.Parameter(
        torch.tensor(np.asarray(params["delta"]["word_embeddings"]["embedding"])).double()
    )
    named = {"generator": generator.named(), "discriminator": discriminator.named()}
    named["discriminator"][table] = delta
    adam = {name: torch_rtd.optimizer(part, config, 0.0) for name, part in named.items()}
    for number in range(steps):
        batch = small.random_batch(small.SMALL, seed + number)
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(np.uint32(7)), number), 0)
        replaced = jax.device_get(filled(state.params, batch, rng))
        state, _ = step(state, batch, np.uint32(7))
        there = {k: torch.tensor(v) for k, v in batch.items()}
        there = {k: v.long() if not v.is_floating_point() else v for k, v in there.items()}
        for name in named:
            rate = float(optimizers.groups[name].schedule(number))
            for group in adam[name].param_groups:
                group["lr"] = rate
        torch_rtd.update(generator.loss(there), adam["generator"], named["generator"], 1.0)
        tables = generator.named()[table].detach() + delta
        ids, label = (torch.tensor(replaced[k]) for k in ("replaced_ids", "is_replaced"))
        loss = 10.0 * discriminator.loss(tables, ids.long(), label, there)
        torch_rtd.update(loss, adam["discriminator"], named["discriminator"], 1.0)

    def compare(tree, theirs, tolerance):
        ours = {name: released(tree, name) for name in named}
        ours["discriminator"][table] = tree["delta"]["word_embeddings"]["embedding"]
        for model, tensors in ours.items():
            assert tensors.keys() == named[model].keys()
            for name, tensor in tensors.items():
                want = theirs(model, named[model][name]).detach().numpy()
                np.testing.assert_allclose(tensor, want, atol=tolerance, err_msg=f"{model} {name}")

    compare(state.params, lambda _, parameter: parameter, 1e-5)
    before, after = (x["delta"]["word_embeddings"]["embedding"] for x in (params, state.params))
    assert np.abs(before - after).max() > 1e-5
    moments = {name: _adam(state.opt_state[name]) for name in named}
    for ours, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        tree = {
            "generator": getattr(moments["generator"], ours)["generator"],
            **getattr(moments["discriminator"], ours),
        }
        compare(tree, lambda model, p, theirs=theirs: adam[model].state[p][theirs], 1e-5)


def _adam(state):
    """Adam's moments in a chain's state."""
    return next(part for part in state if hasattr(part, "mu"))


def test_microbatches_make_the_same_step(seed):
    """But for what is drawn: at a temperature near zero the likeliest token always is."""
    config = OptimizerConfig(learning_rate=1e-3, warmup="0 steps")
    objective = make(layers=1, temperature=1e-4)
    params, batch = noisy(objective, seed), small.random_batch(small.SMALL, seed)
    optimizers = make_optimizers(config, objective, UNITS)
    results = []
    for parts in (1, 2):
        state = TrainState(jnp.int32(0), params, optimizers.init(params))
        results.append(jax.jit(make_train_step(objective, optimizers, parts))(state, batch, 0))
    (one, metrics), (two, others) = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.params, two.params)
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_special_tokens_are_not_drawn_where_that_is_said(seed):
    config = small.variant(num_hidden_layers=2, **STILL)
    sections = {"compute": ComputeConfig(), "masking": MaskingConfig(num_predictions=6)}
    rtd = RtdConfig(sample_special=False, temperature=50.0)  # all but uniform
    objective = ReplacedTokenDetection(config, rtd=rtd, last_id=60, **sections)
    params = noisy(objective, seed)
    drawn = set()
    fill = filler(objective)
    for number in range(8):
        batch = small.random_batch(config, seed + number)
        ids = np.asarray(fill(params, batch, jax.random.key(seed + number))["replaced_ids"])
        real = batch["masked_weights"] > 0
        drawn |= set(np.take_along_axis(ids, batch["masked_positions"], axis=1)[real])
    assert min(drawn) >= 4 and max(drawn) < 60 and len(drawn) > 30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(sharing="gds"), r"rtd\.sharing is 'gds'; it must be one of"),
        (dict(temperature=0.0), r"rtd\.temperature is 0\.0; it must be above 0"),
        (dict(temperature=float("nan")), r"rtd\.temperature is nan"),
        (dict(discriminator_weight=-1.0), r"rtd\.discriminator_weight is -1\.0"),
        (dict(generator_layers=-1), r"rtd\.generator_layers is -1"),
        (dict(decoupled=False, discriminator_learning_rate=1e-4), r"joint updates have one"),
    ],
)
def test_impossible_settings_are_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        RtdConfig(**settings)


def test_a_sharded_step_is_the_step_of_one_device(seed):
    on_eight_devices(check_sharded, seed)


def check_sharded(seed):
    from deberta_jax.parallel import sharding
    from deberta_jax.parallel.mesh import MeshConfig, make_mesh
    from deberta_jax.training.state import abstract_state

    seed = int(seed)
    config = OptimizerConfig(learning_rate=1e-3, warmup="0 steps")
    objective = make(layers=2)
    params, batch = noisy(objective, seed), small.random_batch(small.SMALL, seed)
    optimizers = make_optimizers(config, objective, UNITS)
    step = make_train_step(objective, optimizers, 1)
    state = TrainState(jnp.int32(0), params, optimizers.init(params))
    want, want_metrics = jax.device_get(jax.jit(step)(state, batch, np.uint32(3)))
    mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices())
    abstract, initialize = abstract_state(objective, optimizers, mesh)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    with sharding.on(mesh):
        arguments = initialize(None, params), sharding.to_devices(batch, mesh), np.uint32(3)
        there = jax.jit(step, in_shardings=(layouts, sharding.batch_sharding(mesh), None))
        compiled = there.lower(*arguments).compile()
        got, metrics = compiled(*arguments)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), jax.device_get(got), want
    )
    for name, value in want_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    # No device ever holds a whole table, E_delta and its gradient included.
    whole = f"f32[{small.SMALL.vocab_size},{small.SMALL.hidden_size}]"
    assert whole not in compiled.as_text()


def test_the_settings_of_a_group_are_its_own():
    config = OptimizerConfig(learning_rate=1e-3)
    objective = make(discriminator_learning_rate=5e-4)
    assert objective.optimizer_config("discriminator", config).learning_rate == 5e-4
    assert objective.optimizer_config("generator", config) == config
    assert make().optimizer_config("discriminator", config) == config
    assert dataclasses.replace(config) == config
