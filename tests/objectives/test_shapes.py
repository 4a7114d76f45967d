"""The shapes in the types of objectives and of the step are checked while each is traced."""

import subprocess
import sys
from pathlib import Path

import pytest

from deberta_jax import objectives

TRACE = """
from jaxtyping import install_import_hook

# A `TrainState` holds shardings or shapes as well as arrays, so its own module is not among them.
rooms = ["objectives", "training.step", "training.groups", "training.norms", "training.evaluation"]
with install_import_hook([f"deberta_jax.{room}" for room in rooms], "beartype.beartype"):
    from deberta_jax import objectives
    for name in objectives.names():
        objectives.kind(name)
    from deberta_jax.training import evaluation, groups, norms, step
import flax.linen as nn, jax, jax.numpy as jnp
from deberta_jax import schema
from deberta_jax.training.state import TrainState
from deberta_jax.training.step_units import StepUnits
from tests.formats.recipe import get_config

def trace(name, batch=lambda batch: batch):
    config = get_config()
    config.objective, config.model.causal = name, name == "clm"
    config.model.num_hidden_layers = 1
    config.task.labels = ("value",) if name == "regression" else ("a", "b")
    config.finetune.sift_weight = 1.0
    config = schema.freeze(config)
    objective = objectives.make(config)
    shapes = batch(objective.batch_shapes(32, 8))
    params = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))
    optimizers = groups.make_optimizers(config.optimizer, objective, StepUnits(256, 8, 72))
    state = TrainState(jnp.int32(0), params, jax.eval_shape(optimizers.init, params))
    train_step = step.make_train_step(objective, optimizers, 2, [norms.norms_hook(2)])
    _, metrics = jax.eval_shape(train_step, state, shapes, jnp.uint32(0))
    weights = jax.eval_shape(objective.weights, shapes)
    jax.eval_shape(lambda *x: objective.loss(*x, jax.random.key(0), False), params, shapes, weights)
    print(name, metrics["train/loss"].dtype)

WRONG
for name in objectives.names():
    trace(name)
"""


def trace(wrong=""):
    return subprocess.run(
        [sys.executable, "-c", TRACE.replace("WRONG", wrong)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow(minutes=1)
def test_every_objective_has_the_shapes_of_its_types():
    pytest.importorskip("beartype")
    result = trace()
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert {f"{name} float32" for name in objectives.names()} <= set(lines)


def test_a_batch_of_another_type_is_noticed():
    pytest.importorskip("beartype")
    floats = "jax.ShapeDtypeStruct((8, 3), jnp.float32)"
    result = trace(f"trace('mlm', lambda batch: batch | {{'masked_labels': {floats}}})")
    assert result.returncode != 0
    assert "parameter 'labels_BP'" in result.stderr
