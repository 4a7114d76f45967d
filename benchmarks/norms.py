"""What recording norms costs a training step: python benchmarks/norms.py

The quickstart's model on this machine: the processor's time of a step without and with the norms,
in turns (medians), and the bytes that XLA counts for each program.
"""

import statistics
import time

import jax
import numpy as np

from deberta_jax import schema
from deberta_jax.configs import quickstart
from deberta_jax.objectives.mlm import MaskedLanguageModelling
from deberta_jax.parallel import sharding
from deberta_jax.training.program import make_program
from deberta_jax.training.step_units import StepUnits

SEED = np.uint32(0)
STEPS = 15
PREDICTIONS = 20


def prepared(norms_every: str):
    """(compiled step, state, batch) on one device."""
    recipe = quickstart.get_config()
    recipe.train.norms_every = norms_every
    config = schema.freeze(recipe)
    rows, length = config.train.batch_size, config.data.sequence_length
    rng = np.random.default_rng(0)
    places = np.tile(np.arange(PREDICTIONS, dtype=np.int32), (rows, 1))
    ids = rng.integers(4, config.model.vocab_size, (rows, length)).astype(np.int32)
    batch = {
        "input_ids": ids,
        "segment_ids": np.ones_like(ids),
        "position_ids": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "masked_positions": places,
        "masked_labels": ids[:, :PREDICTIONS],
        "masked_weights": np.ones(places.shape, np.float32),
    }
    objective = MaskedLanguageModelling(config.model)
    program = make_program(
        config, objective, StepUnits(rows * length, 1000, 1500), jax.devices()[:1]
    )
    with sharding.on(program.mesh):
        state = program.initialize(jax.random.key(0))
        batch = sharding.to_devices(batch, program.mesh)
        return program.train_step.lower(state, batch, SEED).compile(), state, batch


def main() -> None:
    programs = {"without": prepared("0"), "with": prepared("1%")}
    seconds = {name: [] for name in programs}
    for turn in range(STEPS + 2):
        for name, (step, state, batch) in programs.items():
            start = time.process_time()
            state, _ = jax.block_until_ready(step(state, batch, SEED))
            if turn >= 2:
                seconds[name].append(time.process_time() - start)
            programs[name] = step, state, batch
    for name, (step, *_) in programs.items():
        moved = step.cost_analysis()["bytes accessed"]
        print(
            f"{name} norms: {1e3 * statistics.median(seconds[name]):.1f} ms of processor a step, "
            f"{moved / 1e6:.1f} MB accessed"
        )


if __name__ == "__main__":
    main()
