"""The step: a pure function of (state, batch, seed). Its randomness is fold_in(key, step)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Shaped, UInt

from deberta_jax.training.groups import Optimizers, merge
from deberta_jax.training.guard import Guard, GuardState, choose, gradient_norms
from deberta_jax.training.state import TrainState
from deberta_jax.training.trainable import Batch, Scalars, Trainable

TrainStep = Callable[..., tuple[TrainState, dict[str, Any]]]
# `(index, rows) -> (gradient, sums, additions)` of a part of the batch.
Gradient = Callable[[Any, Batch], tuple[Any, Scalars, Batch]]


class StepOutcome(NamedTuple):
    """What a step made, before it counts.

    Attributes:
        before: the state that it began with.
        after: the state that it ends with.
        grads: the whole batch's gradient, before it is clipped.
        updates: what was added to the parameters, unless the step is skipped.
        skipped: bool [], whether the guard skips the step: `after` is then `before`, but for its
            number.
    """

    before: TrainState
    after: TrainState
    grads: Any
    updates: Any
    skipped: jax.Array | bool = False


# Runs inside the compiled step: `outcome -> (state after, metrics)`.
StepHook = Callable[[StepOutcome], tuple[TrainState, dict[str, Any]]]


class _Updated(NamedTuple):
    """What the stages of a step made."""

    params: Any
    opt_state: Any
    sums: Scalars
    rates: Scalars
    grads: Any
    updates: Any


def make_train_step(
    objective: Trainable,
    optimizers: Optimizers,
    microbatches: int,
    hooks: Sequence[StepHook] = (),
    guard: Guard | None = None,
) -> TrainStep:
    """`(state, batch, seed[, guard state]) -> (state, metrics)`.

    The batch is computed in `microbatches` parts, whose losses are divided by the whole batch's
    weights: any number of parts gives the gradient of the whole batch. The hooks may add metrics,
    and may change what the step ends with. The seed is an argument, not part of the program, so
    that runs with other seeds need no compilation.

    With a guard, a step that does not count leaves parameters and optimizer state as they were, all
    of its stages or none. The metrics then hold "skipped", "guard", the guard's next state, and
    "gradient_norms" of each array.
    """

    def train_step(
        state: TrainState,
        batch: Batch,
        seed: UInt[Array, ""],
        guarded: GuardState | None = None,
    ) -> tuple[TrainState, dict[str, Any]]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        weights = objective.weights(batch)
        # A skipped step is no update: the schedule goes by the optimizer's own count.
        count = state.step - guarded.skipped if guarded else state.step
        new = _update(objective, optimizers, microbatches, state, batch, weights, rng, count)
        summary = objective.summarize(new.sums, weights)
        metrics: dict[str, Any] = {f"train/{name}": value for name, value in summary.items()}
        metrics |= new.rates
        after = TrainState(state.step + 1, new.params, new.opt_state)
        skipped: Any = False
        if guard is not None and guarded is not None:
            counts, judged = guard.judge(metrics, guarded)
            after = choose(counts, after, TrainState(after.step, state.params, state.opt_state))
            skipped = ~counts
            metrics |= {"guard": judged, "skipped": skipped}
            metrics["gradient_norms"] = gradient_norms(new.grads)
        for hook in hooks:
            after, measured = hook(StepOutcome(state, after, new.grads, new.updates, skipped))
            metrics |= measured
        return after, metrics

    return train_step


def _update(
    objective: Trainable,
    optimizers: Optimizers,
    microbatches: int,
    state: TrainState,
    batch: Batch,
    weights: Scalars,
    rng: jax.Array,
    count: jax.Array,
) -> _Updated:
    """The objective's stages, one after another; each sees what those before it made."""
    params, opt_state = state.params, state.opt_state
    sums: Scalars = {}
    rates: Scalars = {}
    grads: Any = {}
    updates: Any = {}
    for number, (groups, loss) in enumerate(objective.stages()):
        # Parts of the batch count from 0 upwards, later stages from the other end.
        stage_rng = jax.random.fold_in(rng, np.uint32(2**32 - number)) if number else rng
        learned = optimizers.select(params, groups)
        gradient = _gradient(loss, params, learned, weights, stage_rng)
        stage_grads, stage_sums, additions = _accumulated(gradient, batch, microbatches)
        moves, opt_state = optimizers.update(groups, stage_grads, opt_state, params)
        params = merge(params, optax.apply_updates(learned, moves))
        rates |= optimizers.metrics(groups, stage_grads, count)
        grads, updates = merge(grads, stage_grads), merge(updates, moves)
        batch, sums = batch | additions, sums | stage_sums
    return _Updated(params, opt_state, sums, rates, grads, updates)


def _gradient(
    loss: Callable, params: Any, learned: Any, weights: Scalars, rng: jax.Array
) -> Gradient:
    """The gradient by `learned` of some rows of the batch."""

    def gradient(index, rows):
        part_rng = jax.random.fold_in(rng, index)

        def of_learned(learned):
            return loss(merge(params, learned), rows, weights, part_rng)

        grads, (sums, additions) = jax.grad(of_learned, has_aux=True)(learned)
        return grads, sums, additions

    return gradient


def _accumulated(gradient: Gradient, batch: Batch, parts: int) -> tuple[Any, Scalars, Batch]:
    """`gradient(index, rows)` of the parts of a batch, one after another: gradients and sums added
    up, the additions [B, ...] put together."""
    if parts == 1:
        return gradient(0, batch)
    split = jax.tree.map(lambda rows: _split(rows, parts), batch)
    shapes = jax.eval_shape(gradient, 0, jax.tree.map(lambda rows: rows[0], split))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[:2])

    def add(total, part):
        *added, additions = gradient(*part)
        return jax.tree.map(jnp.add, total, tuple(added)), additions

    (grads, sums), additions = jax.lax.scan(add, nothing, (jnp.arange(parts), split))
    return grads, sums, jax.tree.map(_joined, additions)


def _split(rows: Shaped[Array, "B ..."], parts: int) -> Shaped[Array, "parts b ..."]:
    """[B, ...] -> [parts, B / parts, ...]; part m is every parts-th row: no row changes device."""
    return rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]).swapaxes(0, 1)


def _joined(rows: Shaped[Array, "parts b ..."]) -> Shaped[Array, "B ..."]:
    """The inverse of `_split`."""
    return rows.swapaxes(0, 1).reshape(-1, *rows.shape[2:])
