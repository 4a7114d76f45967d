"""The training state, created in shards: never whole on one host."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deberta_jax.parallel import sharding
from deberta_jax.training.groups import Optimizers
from deberta_jax.training.trainable import Trainable


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
        step: int32 [], steps done.
        params: the objective's parameters, float32.
        opt_state: the state of the optimizers (`groups.Optimizers`).
    """

    step: jax.Array
    params: Any
    opt_state: Any


def abstract_state(
    objective: Trainable, optimizers: Optimizers, mesh: Mesh
) -> tuple[TrainState, Callable[..., TrainState]]:
    """Shapes, types and shardings of the state, and the function that makes it.

    Returns:
        abstract: a `TrainState` of `ShapeDtypeStruct`s that carry their shardings.
        initialize: `(rng, params or None) -> TrainState`, each device making only its own shards.
    """

    def boxed(rng: jax.Array) -> TrainState:
        return _with_optimizer(objective.init(rng))

    def _with_optimizer(params: Any) -> TrainState:
        return TrainState(jnp.zeros([], jnp.int32), params, optimizers.init(params))

    abstract = _laid_out(jax.eval_shape(boxed, jax.random.key(0)), mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def initialize(rng: jax.Array, params: Any = None) -> TrainState:
        if params is None:
            return jax.jit(lambda rng: nn.unbox(boxed(rng)), out_shardings=shardings)(rng)
        params = jax.device_put(params, shardings.params)
        return jax.jit(_with_optimizer, out_shardings=shardings)(params)

    return abstract, initialize


def abstract_params(objective: Trainable, mesh: Mesh) -> Any:
    """Shapes, types and shardings of the parameters alone."""
    return _laid_out(jax.eval_shape(objective.init, jax.random.key(0)), mesh)


def _laid_out(shapes: Any, mesh: Mesh) -> Any:
    return jax.tree.map(
        lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
        nn.unbox(shapes),
        sharding.parameter_shardings(shapes, mesh),
    )
