"""The held-out metrics of a run, and examples of what it predicts."""

import jax

from deberta_jax import objectives
from deberta_jax.runs.opening import Run
from deberta_jax.runs.pretraining import held_out_batches
from deberta_jax.training.evaluation import make_evaluation


def held_out_metrics(run: Run) -> dict[str, float]:
    """{"eval/" + metric: value} over the whole held-out split, or as the recipe bounds it.

    Raises:
        UserError: the run's data is not there, or it is a fine-tuned run.
    """
    objective = objectives.make(run.config, run.prepared.unigram_counts)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, run.params)
    evaluate = make_evaluation(objective, layouts, run.mesh)
    return evaluate(run.params, held_out_batches(run.config, objective, run.prepared, run.mesh)())


def held_out_examples(run: Run, count: int) -> list[str]:
    """Lines that show the run's predictions on held-out text (`Objective.examples`)."""
    return run.objective.examples(run.params, run.prepared, run.config.seed, count)
