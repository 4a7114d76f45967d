"""The step: a pure function of (state, batch, seed). Its randomness is fold_in(key, step)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from deberta_jax.training.state import TrainState
from deberta_jax.training.trainable import Trainable


class StepOutcome(NamedTuple):
    """What a step made, before it counts.

    Attributes:
        before: the state that it began with.
        after: the state that it ends with.
        grads: the whole batch's gradient, before it is clipped.
        updates: what was added to the parameters.
    """

    before: TrainState
    after: TrainState
    grads: Any
    updates: Any


# Runs inside the compiled step: `outcome -> (state after, metrics)`.
StepHook = Callable[[StepOutcome], tuple[TrainState, dict[str, Any]]]


def make_train_step(
    objective: Trainable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    microbatches: int,
    hooks: Sequence[StepHook] = (),
):
    """`(state, batch, seed) -> (state, metrics)`; the batch is computed in `microbatches` parts.

    The parts' losses are divided by the whole batch's weights, so that any number of parts gives
    the gradient of the whole batch. The hooks may add metrics, and may change what the step ends
    with. The seed is an argument, not part of the program, so that runs with other seeds need no
    compilation.
    """

    def train_step(state: TrainState, batch: dict[str, jax.Array], seed: jax.Array):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        weights = objective.weights(batch)

        def gradient(index, rows):
            """(gradient, sums) of some rows of the batch."""
            part_rng = jax.random.fold_in(rng, index)
            loss = functools.partial(objective.loss, train=True)
            return jax.grad(loss, has_aux=True)(state.params, rows, weights, part_rng)

        if microbatches == 1:
            grads, sums = gradient(0, batch)
        else:
            grads, sums = _accumulated(gradient, batch, microbatches)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {f"train/{name}": v for name, v in objective.summarize(sums, weights).items()}
        metrics["optim/grad_norm"] = optax.tree.norm(grads)
        metrics["optim/learning_rate"] = schedule(state.step)
        after = TrainState(state.step + 1, params, opt_state)
        for hook in hooks:
            after, measured = hook(StepOutcome(state, after, grads, updates))
            metrics |= measured
        return after, metrics

    return train_step


def _accumulated(gradient, batch, parts: int):
    """The sum of `gradient(index, rows)` over the parts of a batch, one after another."""
    split = jax.tree.map(lambda rows: _split(rows, parts), batch)
    shapes = jax.eval_shape(gradient, 0, jax.tree.map(lambda rows: rows[0], split))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradient(*part)), None

    return jax.lax.scan(add, nothing, (jnp.arange(parts), split))[0]


def _split(rows, parts):
    """[B, ...] -> [parts, B / parts, ...]; part m is every parts-th row: no row changes device."""
    return rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]).swapaxes(0, 1)
