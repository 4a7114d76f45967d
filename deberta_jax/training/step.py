"""The step: a pure function of (state, batch, seed). Its randomness is fold_in(key, step)."""

import functools

import jax
import jax.numpy as jnp
import optax

from deberta_jax.training.norms import part_norms
from deberta_jax.training.state import TrainState


def make_train_step(objective, optimizer, schedule, microbatches: int, norms_every: int = 0):
    """`(state, batch, seed) -> (state, metrics)`; the batch is computed in `microbatches` parts.

    The parts' losses are divided by the whole batch's weights, so that any number of parts gives
    the gradient of the whole batch. Where `norms_every` is not 0, the metrics also hold "norms":
    {kind: [parts]} of the weights before the step, of the gradient before it is clipped, and of the
    update; they are measured at every so many steps, and zeros at the others. The seed is an
    argument, not part of the program, so that runs with other seeds need no compilation.
    """

    def train_step(state: TrainState, batch: dict[str, jax.Array], seed: jax.Array):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        weights = objective.weights(batch)

        def gradient(index, rows):
            """(gradient, sums) of some rows of the batch."""
            part_rng = jax.random.fold_in(rng, index)
            loss = functools.partial(objective.loss, train=True)
            grads, sums = jax.grad(loss, has_aux=True)(state.params, rows, weights, part_rng)
            return grads, sums

        if microbatches == 1:
            grads, sums = gradient(0, batch)
        else:
            grads, sums = _accumulated(gradient, batch, microbatches)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {f"train/{name}": v for name, v in objective.summarize(sums, weights).items()}
        metrics["optim/grad_norm"] = optax.tree.norm(grads)
        metrics["optim/learning_rate"] = schedule(state.step)
        if norms_every:
            trees = {"weight": state.params, "gradient": grads, "update": updates}
            metrics["norms"] = _norms_if((state.step + 1) % norms_every == 0, trees)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def _norms_if(due, trees):
    """{kind: [parts]}: the norms of each tree, or zeros for next to nothing."""

    def measure():
        return {kind: part_norms(tree) for kind, tree in trees.items()}

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measure))
    return jax.lax.cond(due, measure, lambda: zeros)


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
