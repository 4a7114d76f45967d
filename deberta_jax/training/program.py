"""Everything that is fixed before a run touches its workdir: mesh, layouts, compiled steps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from deberta_jax.parallel import sharding, xla_options
from deberta_jax.parallel.mesh import make_mesh
from deberta_jax.training.evaluation import make_evaluation
from deberta_jax.training.groups import make_optimizers
from deberta_jax.training.guard import Guard
from deberta_jax.training.norms import norms_hook
from deberta_jax.training.state import TrainState, abstract_state
from deberta_jax.training.step import make_train_step
from deberta_jax.training.step_units import StepUnits, clock_seconds
from deberta_jax.training.trainable import Trainable


class Intervals(NamedTuple):
    """Steps between two of each; 0 for never.

    Attributes:
        checkpoint_seconds: seconds between two checkpoints, where they are stated so; else 0.
    """

    log: int
    eval: int
    checkpoint: int
    norms: int
    checkpoint_seconds: float = 0.0


class TrainProgram(NamedTuple):
    """What the loop drives.

    Attributes:
        mesh: the devices.
        units: the run's units of time, its total steps included.
        every: how often metrics are reported, held-out data measured, checkpoints written.
        abstract: shapes, types and shardings of the training state.
        initialize: `(rng, params or None) -> state`, made in shards; params replace random ones.
        guard: which steps count.
        train_step: `(state, batch, seed, guard state) -> (state, metrics)`, jitted, the state
            donated; the seed is uint32 [], the guard's state begins with `guard.initial()`.
        evaluate: `(params, batches) -> {"eval/" + metric: value}`.
    """

    mesh: Mesh
    units: StepUnits
    every: Intervals
    abstract: Any
    initialize: Callable[..., TrainState]
    guard: Guard
    train_step: Any
    evaluate: Callable[..., dict[str, float]]


def make_program(
    config: Any,
    objective: Trainable,
    units: StepUnits,
    devices: Sequence[jax.Device] | None = None,
) -> TrainProgram:
    """Raises `UserError` for whatever in the config cannot be run on these devices.

    Args:
        config: a `deberta_jax.schema.Config`; read are `train`, `optimizer`, `guard` and
            `mesh`.
        objective: what is learned (`objectives.Objective`).
        units: the run's units of time, its total steps included.
        devices: what to run on, or to compile for; by default all that JAX has.
    """
    settings = config.train
    every = _intervals(settings, units)
    mesh = make_mesh(config.mesh, devices)
    sharding.check_batch(settings.batch_size, settings.microbatches, mesh)
    optimizers = make_optimizers(config.optimizer, objective, units)
    abstract, initialize = abstract_state(objective, optimizers, mesh)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    norms = [optimizers.norm_metric(name) for name in optimizers.groups]
    guard = Guard(config.guard, ["train/loss", *norms])
    hooks = [norms_hook(every.norms)] if every.norms else []
    step = make_train_step(objective, optimizers, settings.microbatches, hooks, guard)
    whole = sharding.replicated(mesh)
    train_step = jax.jit(
        step,
        in_shardings=(layouts, sharding.batch_sharding(mesh), whole, whole),
        out_shardings=(layouts, whole),
        donate_argnums=0,
        compiler_options=xla_options.options(mesh),
    )
    evaluate = make_evaluation(objective, layouts.params, mesh)
    return TrainProgram(mesh, units, every, abstract, initialize, guard, train_step, evaluate)


def _intervals(settings: Any, units: StepUnits) -> Intervals:
    def steps(what: str) -> int:
        return units.steps(f"train.{what}_every", getattr(settings, f"{what}_every"))

    seconds = clock_seconds(settings.checkpoint_every)
    checkpoint = 0 if seconds else steps("checkpoint")
    return Intervals(steps("log"), steps("eval"), checkpoint, steps("norms"), seconds)
