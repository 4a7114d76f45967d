"""Held-out metrics: sums over batches, added up on the devices, divided once at the end."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deberta_jax.parallel import sharding
from deberta_jax.training import signals, watchdog
from deberta_jax.training.trainable import Batch, Scalars, Trainable

# This process's rows of a batch.
Rows = Mapping[str, np.ndarray]


def make_prediction(objective: Any, layouts: Any, mesh: Mesh) -> Callable:
    """`(params, batches) -> iterator of (label, outputs)`, without dropout.

    `batches` gives (label, this process's rows); the outputs are those of all processes' rows, on
    this machine: {"logits": [B, ...], "sums": {...}}. Sums only where the batch has targets.

    Args:
        objective: what makes `logits` and their `sums`.
        layouts: shardings of the parameters.
        mesh: where it runs.
    """

    def predict_step(params, batch):
        logits = objective.logits(params, batch)
        sums = objective.sums(logits, batch) if "weights" in batch else {}
        return {"logits": logits, "sums": sums}

    batch_layout, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    predict_step = jax.jit(predict_step, in_shardings=(layouts, batch_layout), out_shardings=whole)

    def predict(params, batches):
        with sharding.on(mesh):
            for label, batch in batches:
                _between_batches()
                yield label, jax.device_get(predict_step(params, sharding.to_devices(batch, mesh)))

    return predict


def make_evaluation(
    objective: Trainable, layouts: Any, mesh: Mesh
) -> Callable[[Any, Iterable[Rows]], dict[str, float]]:
    """`(params, batches) -> {"eval/" + metric: value}`, a mean over all batches without dropout.

    Args:
        objective: what is measured.
        layouts: shardings of the parameters.
        mesh: where it runs.
    """

    def eval_step(params: Any, batch: Batch) -> tuple[Scalars, Scalars]:
        weights = objective.weights(batch)
        _, sums = objective.loss(params, batch, weights, jax.random.key(0), train=False)
        return sums, weights

    batch_layout, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    eval_step = jax.jit(eval_step, in_shardings=(layouts, batch_layout), out_shardings=whole)

    observe = jax.jit(objective.observe, in_shardings=(layouts,), out_shardings=whole)

    def evaluate(params: Any, batches: Iterable[Rows]) -> dict[str, float]:
        total: Any = None
        with sharding.on(mesh):
            for batch in batches:
                _between_batches()
                part = eval_step(params, sharding.to_devices(batch, mesh))
                total = part if total is None else jax.tree.map(jnp.add, total, part)
            metrics = objective.summarize(*total) | observe(params)
        return {f"eval/{name}": float(value) for name, value in metrics.items()}

    return evaluate


def _between_batches() -> None:
    """Raises `signals.Interrupted` where the run that evaluates is told to stop."""
    watchdog.beat()
    signals.check()
