"""Fine-tuning: python -m deberta_jax.finetune --config=FILE --init=CHECKPOINT --workdir=DIR

FILE is a task's (configs/finetune/sst2.py, or configs/finetune/sst2.py:large for the published
settings of a large model). CHECKPOINT is a released one, an export, or the workdir of a run. With
--seeds=N the task is learned N times, from config.seed on, each in `seed_S` of the workdir; their
scores, with mean, standard deviation and median, are in `results.json`. Run again, the same command
continues where it stopped.
"""

import sys

import jax
from absl import flags

from deberta_jax import api, command
from deberta_jax.evaluation import finetuning_scores


def main(parsed) -> None:
    workdir = command.workdir(parsed)
    scores = api.finetune(command.config(parsed), workdir, init=parsed.init, seeds=parsed.seeds)
    if scores is None:
        sys.exit(command.STOPPED)
    if jax.process_index() == 0:
        print(finetuning_scores.of_task(workdir))


if __name__ == "__main__":
    flags.DEFINE_string("init", None, "Checkpoint to begin with; or the workdir of a run.")
    flags.DEFINE_integer("seeds", 1, "Times to learn it, with as many seeds.", lower_bound=1)
    command.run(main, processes=True)
