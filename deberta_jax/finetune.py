"""Fine-tuning: python -m deberta_jax.finetune --config=FILE --init=CHECKPOINT --workdir=DIR

FILE is a task's (configs/finetune/sst2.py, or configs/finetune/sst2.py:large for the published
settings of a large model). CHECKPOINT is a released one, an export, or the workdir of a run. With
--seeds=N the task is learned N times, from config.seed on, each in `seed_S` of the workdir; their
scores, with mean, standard deviation and median, are in `results.json`. Run again, the same command
continues where it stopped.
"""

import dataclasses
import sys

import jax
from absl import flags

from deberta_jax import command
from deberta_jax.evaluation import result_tables
from deberta_jax.runs.finetuning import finetune_seed, open_session


def main(parsed) -> None:
    config, workdir = command.config(parsed), command.workdir(parsed)
    if parsed.init:
        train = dataclasses.replace(config.train, init=parsed.init)
        config = dataclasses.replace(config, train=train)
    session = open_session(config)
    found = {}
    for seed in range(config.seed, config.seed + parsed.seeds):
        found[seed] = finetune_seed(session, seed, workdir / f"seed_{seed}")
        if found[seed] is None:
            sys.exit(command.STOPPED)
    if jax.process_index() == 0:
        result_tables.write(workdir, config.task.name, found)
        print(result_tables.of_task(workdir))


if __name__ == "__main__":
    flags.DEFINE_string("init", None, "Checkpoint to begin with; or the workdir of a run.")
    flags.DEFINE_integer("seeds", 1, "Times to learn it, with as many seeds.", lower_bound=1)
    command.run(main, processes=True)
