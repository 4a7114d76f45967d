"""Everything that is settled before a run touches its workdir: mesh, layouts, compiled steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh

from deberta_jax.parallel import sharding
from deberta_jax.parallel import xla_options as compiler
from deberta_jax.parallel.mesh import make_mesh
from deberta_jax.training.evaluation import make_evaluation
from deberta_jax.training.optimizer import make_optimizer, make_schedule
from deberta_jax.training.state import abstract_state
from deberta_jax.training.step import make_train_step
from deberta_jax.training.step_units import Clockwork


class Plan(NamedTuple):
    """What the loop drives.

    Attributes:
        mesh: the devices.
        clockwork: the run's units of time, its total steps included.
        every: steps between two "log", "eval", "checkpoint" and "norms"; 0 for never.
        abstract: shapes, types and shardings of the training state.
        initialize: `(rng, params or None) -> state`, made in shards; params replace random ones.
        train_step: `(state, batch, seed) -> (state, metrics)`, jitted, the state donated; the seed
            is uint32 [].
        evaluate: `(params, batches) -> {"eval/" + metric: value}`.
    """

    mesh: Mesh
    clockwork: Clockwork
    every: dict[str, int]
    abstract: Any
    initialize: Callable
    train_step: Callable
    evaluate: Callable


def make_plan(config, objective, clockwork: Clockwork, devices=None) -> Plan:
    """Raises `UserError` for whatever in the config cannot be run on these devices.

    Args:
        config: a `deberta_jax.schema.Config`; read are `train`, `optimizer` and `mesh`.
        objective: what is learned (`objectives.Objective`).
        clockwork: the run's units of time, its total steps included.
        devices: what to run on, or to compile for; all that JAX has unless told otherwise.
    """
    settings = config.train
    every = {
        what: clockwork.steps(f"train.{what}_every", getattr(settings, f"{what}_every"))
        for what in ("log", "eval", "checkpoint", "norms")
    }
    mesh = make_mesh(config.mesh, devices)
    sharding.check_batch(settings.batch_size, settings.microbatches, mesh)
    schedule = make_schedule(config.optimizer, clockwork)
    depths = None
    if config.optimizer.layer_decay != 1:
        depths = objective.depths(nn.unbox(jax.eval_shape(objective.init, jax.random.key(0))))
    optimizer = make_optimizer(config.optimizer, schedule, depths)
    abstract, initialize = abstract_state(objective, optimizer, mesh)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = make_train_step(
        objective,
        optimizer,
        schedule,
        settings.microbatches,
        norms_every=every["norms"],
    )
    train_step = jax.jit(
        step,
        in_shardings=(layouts, sharding.batch_sharding(mesh), sharding.replicated(mesh)),
        out_shardings=(layouts, sharding.replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler.options(mesh),
    )
    evaluate = make_evaluation(objective, layouts.params, mesh)
    return Plan(mesh, clockwork, every, abstract, initialize, train_step, evaluate)
