"""What judging a step costs: python benchmarks/guard.py

Two layers of v3 base's width, on few tokens: the update of 114M parameters and of Adam's moments is
most of such a step, as it is of no real one. Without a guard; with the guard as it is, a select in
the update; with a branch around the update instead. The processor's time of a step in turns
(medians), the bytes that XLA counts, and the memory beside arguments and results. At last, that the
guard changes no bit.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.norms import random_batch
from deberta_jax.model.config import ModelConfig
from deberta_jax.objectives.mlm import MaskedLanguageModelling
from deberta_jax.training.config import GuardConfig, OptimizerConfig
from deberta_jax.training.groups import Optimizers, make_optimizers
from deberta_jax.training.guard import Guard
from deberta_jax.training.state import TrainState
from deberta_jax.training.step import make_train_step
from deberta_jax.training.step_units import StepUnits

SEED, WARM_UP = np.uint32(0), 2


def branching(objective: MaskedLanguageModelling, optimizers: Optimizers, guard: Guard) -> Callable:
    """The step of one stage whose update is a branch of its own."""

    def step(state, batch, seed, guarded):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        rng = jax.random.fold_in(rng, 0)
        weights = objective.weights(batch)

        def loss(params):
            return objective.loss(params, batch, weights, rng, train=True)

        grads, sums = jax.grad(loss, has_aux=True)(state.params)
        summary = objective.summarize(sums, weights)
        metrics = {f"train/{name}": value for name, value in summary.items()}
        metrics |= optimizers.metrics(["default"], grads, state.step - guarded.skipped)
        counts, judged = guard.judge(metrics, guarded)

        def update():
            moves, opt_state = optimizers.update(["default"], grads, state.opt_state, state.params)
            return optax.apply_updates(state.params, moves), opt_state

        params, opt_state = jax.lax.cond(counts, update, lambda: (state.params, state.opt_state))
        return TrainState(state.step + 1, params, opt_state), metrics | {"guard": judged}

    return step


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=128_100)
    args = parser.parse_args(argv)
    config = ModelConfig(num_hidden_layers=args.layers, vocab_size=args.vocabulary)
    objective = MaskedLanguageModelling(config)
    optimizers = make_optimizers(OptimizerConfig(warmup="0"), objective, StepUnits(1.0, 1.0, 1000))
    guard = Guard(GuardConfig(), ["train/loss", "optim/grad_norm"])
    steps = {
        "without": make_train_step(objective, optimizers, 1),
        "select": make_train_step(objective, optimizers, 1, guard=guard),
        "branch": branching(objective, optimizers, guard),
    }
    batch = jax.device_put(random_batch(2, 32, args.vocabulary))
    params = jax.tree.map(
        lambda leaf: 0.02 * jax.random.normal(jax.random.key(0), leaf.shape),
        jax.eval_shape(lambda: nn.unbox(objective.init(jax.random.key(0)))),
    )
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{total / 1e6:.0f}M parameters, {12 * total / 1e6:,.0f} MB of state")
    ends = {}
    for name, step in steps.items():
        state = TrainState(jnp.int32(0), params, optimizers.init(params))
        state = jax.tree.map(jnp.copy, state)  # it is donated
        rest = (batch, SEED) if name == "without" else (batch, SEED, guard.initial())
        compiled = jax.jit(step, donate_argnums=0).lower(state, *rest).compile()
        seconds = []
        for turn in range(WARM_UP + args.repeats):
            start = time.process_time()
            state, metrics = jax.block_until_ready(compiled(state, *rest))
            if turn >= WARM_UP:
                seconds.append(time.process_time() - start)
        memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
        assert memory is not None and costs is not None
        moved, beside = costs["bytes accessed"] / 1e6, memory.temp_size_in_bytes / 1e6
        ends[name] = jax.device_get((state, metrics["train/loss"]))
        del state, compiled
        same = all(
            np.array_equal(x, y)
            for x, y in zip(*map(jax.tree.leaves, (ends[name], ends["without"])), strict=True)
        )
        print(
            f"{name:<14} {1e3 * statistics.median(seconds):7.1f} ms of processor a step, "
            f"{moved:8,.0f} MB accessed, {beside:7,.0f} MB beside, "
            f"{'the same bits' if same else 'OTHER BITS'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
