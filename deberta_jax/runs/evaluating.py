"""The held-out metrics of a run, and examples of what it predicts."""

from pathlib import Path

import jax

from deberta_jax import objectives, storage
from deberta_jax.errors import UserError
from deberta_jax.evaluation import finetuning_scores
from deberta_jax.runs import directories
from deberta_jax.runs.directories import Found, Kind
from deberta_jax.runs.opening import Run, open_run
from deberta_jax.runs.pretraining import held_out_batches
from deberta_jax.training.evaluation import make_evaluation


def evaluate(directory: Path, examples: int) -> list[str]:
    """What the verb prints of a run, of a fine-tuned run, or of all tasks below a directory.

    Args:
        directory: one of these.
        examples: lines of the run's predictions to show, of each kind.

    Raises:
        UserError: it is none of these, or fine-tuning has not finished.
    """
    found = directories.require(directory, "evaluate")
    if found.kind is Kind.RUN:
        return _held_out(open_run(directory), examples)
    if found.kind is Kind.FINETUNED:
        return _seed_scores(found)
    if found.kind is Kind.SEEDS and not (directory / finetuning_scores.FILE).is_file():
        raise UserError(
            f"{directory} holds {found.text}, not all of which have finished: evaluate shows their "
            "results; the finetune command that started them goes on"
        )
    return [finetuning_scores.table(directory)]


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


def _held_out(run: Run, examples: int) -> list[str]:
    metrics = held_out_metrics(run)
    lines = [f"step {run.step}, on held-out documents:"]
    lines += [f"  {name:<22}{value:.4f}" for name, value in sorted(metrics.items())]
    if "eval/unigram_loss" in metrics:
        gain = metrics["eval/unigram_loss"] - metrics["eval/loss"]
        lines.append(f"  {gain:.2f} nats under the unigram baseline")
    return [*lines, "", *held_out_examples(run, examples)]


def _seed_scores(found: Found) -> list[str]:
    """The scores of one fine-tuned run."""
    path = found.path / finetuning_scores.FILE
    if not path.is_file():
        raise UserError(
            f"{found.path} is {found.text}: evaluate shows its results; the finetune command that "
            "started it goes on"
        )
    results = storage.read_json(path)
    lines = [f"step {results['step']}, on the validation examples:"]
    return lines + [f"  {name:<28}{value:.4f}" for name, value in sorted(results["scores"].items())]
