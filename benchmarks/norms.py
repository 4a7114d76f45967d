"""What recording norms costs a training step: python benchmarks/norms.py

The quickstart's model on this machine: the processor's time of a step without and with the norms,
in turns (medians), and the bytes that XLA counts for each program.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np

from deberta_jax import objectives, recipes, schema
from deberta_jax.parallel import sharding
from deberta_jax.training.program import make_program
from deberta_jax.training.step_units import StepUnits

SEED = np.uint32(0)
PREDICTIONS = 20
WARM_UP = 2


def random_batch(rows: int, length: int, vocabulary: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    positions = np.tile(np.arange(PREDICTIONS, dtype=np.int32), (rows, 1))
    ids = rng.integers(4, vocabulary, (rows, length)).astype(np.int32)
    return {
        "input_ids": ids,
        "segment_ids": np.ones_like(ids),
        "position_ids": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "masked_positions": positions,
        "masked_labels": ids[:, :PREDICTIONS],
        "masked_weights": np.ones(positions.shape, np.float32),
    }


def prepared(name: str, norms_every: str):
    """(compiled step, state, its other arguments) of a recipe on one device."""
    recipe = recipes.load(name)
    recipe.train.norms_every = norms_every
    config = schema.freeze(recipe)
    rows, length = config.train.batch_size, config.data.sequence_length
    units = StepUnits(rows * length, 1000, 1500)
    program = make_program(config, objectives.make(config), units, jax.devices()[:1])
    with sharding.on(program.mesh):
        state = program.initialize(jax.random.key(0))
        batch = random_batch(rows, length, config.model.vocab_size)
        placed = sharding.to_devices(batch, program.mesh)
        rest = placed, SEED, program.guard.initial()
        return program.train_step.lower(state, *rest).compile(), state, rest


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--config", default="quickstart", help="a recipe")
    args = parser.parse_args(argv)
    programs = {"without": prepared(args.config, "0"), "with": prepared(args.config, "1%")}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(WARM_UP + args.repeats):
        for name, (step, state, rest) in programs.items():
            start = time.process_time()
            state, _ = jax.block_until_ready(step(state, *rest))
            if turn >= WARM_UP:
                seconds[name].append(time.process_time() - start)
            programs[name] = step, state, rest
    for name, (step, *_) in programs.items():
        moved = step.cost_analysis()["bytes accessed"]
        print(
            f"{name} norms: {1e3 * statistics.median(seconds[name]):.1f} ms of processor a step, "
            f"{moved / 1e6:.1f} MB accessed"
        )


if __name__ == "__main__":
    main()
