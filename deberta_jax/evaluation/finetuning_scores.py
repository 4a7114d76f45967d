"""Scores of fine-tuned runs: a file a run, a file a task, a table over tasks."""

import statistics
from pathlib import Path

from deberta_jax import storage
from deberta_jax.data.formats.json_text import json_line
from deberta_jax.errors import UserError

FILE = "results.json"
# GLUE's tasks and the scores that the paper averages (table 1): one number each, MNLI two.
GLUE = {
    "cola": ("eval/matthews",),
    "qqp": ("eval/accuracy",),
    "mnli": ("eval/matched/accuracy", "eval/mismatched/accuracy"),
    "sst2": ("eval/accuracy",),
    "stsb": ("eval/pearson",),
    "qnli": ("eval/accuracy",),
    "rte": ("eval/accuracy",),
    "mrpc": ("eval/accuracy",),
}


def read(workdir: Path) -> dict[str, float] | None:
    """The scores of a finished run; None where there are none."""
    path = workdir / FILE
    return storage.read_json(path)["scores"] if path.exists() else None


def write_one(workdir: Path, step: int, scores: dict[str, float]) -> None:
    """Writes a run's scores, of its checkpoint `step`; whole or not at all."""
    storage.write_json(workdir / FILE, {"step": step, "scores": scores})


def write(workdir: Path, name: str, seeds: dict[int, dict[str, float]]) -> None:
    """Writes a task's results: every seed's scores, their mean, standard deviation and median."""
    scores = {
        score: {
            "mean": statistics.mean(values),
            "std": statistics.stdev(values) if len(values) > 1 else 0.0,
            "median": statistics.median(values),
        }
        for score in next(iter(seeds.values()))
        for values in [[scores[score] for scores in seeds.values()]]
    }
    storage.write_json(workdir / FILE, {"task": name, "summary": scores, "seeds": seeds})


def write_lines(path: Path, examples: list[dict], predictions: list[dict]) -> None:
    """A JSON object a line: an example's id, its label, and what was predicted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for example, prediction in zip(examples, predictions, strict=True):
        shown = {k: v for k, v in example.items() if k not in ("context", "words")}
        lines.append(json_line(shown | prediction))
    storage.write(path, "".join(lines))


def of_task(workdir: Path) -> str:
    """A task's table: a row a score."""
    results = storage.read_json(workdir / FILE)
    count = len(results["seeds"])
    lines = [f"{results['task']}, {count} seed(s): mean, standard deviation, median"]
    for score, value in results["summary"].items():
        row = "".join(f"{value[name]:10.4f}" for name in ("mean", "std", "median"))
        lines.append(f"  {score:<28}{row}")
    return "\n".join(lines)


def read_tasks(directory: Path) -> list[dict]:
    """The results of every task below `directory`."""
    files = [storage.read_json(path) for path in storage.find(directory, FILE)]
    return [values for values in files if "summary" in values]


def table(directory: Path) -> str:
    """Markdown over the tasks below `directory`: medians, deviations, and GLUE's average.

    Raises:
        UserError: there are no results.
    """
    tasks = {values["task"]: values for values in read_tasks(directory)}
    if not tasks:
        raise UserError(f"{directory} holds no {FILE}; fine-tune first")
    lines = ["| task | score | median | mean ± deviation | seeds |", "|---|---|---|---|---|"]
    for task, values in tasks.items():
        for score, value in values["summary"].items():
            if score.endswith(("loss", "threshold")):
                continue
            lines.append(
                f"| {task} | {score.removeprefix('eval/')} | {100 * value['median']:.1f} | "
                f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f} | {len(values['seeds'])} |"
            )
    medians = {
        task: {score: value["median"] for score, value in values["summary"].items()}
        for task, values in tasks.items()
    }
    if missing := [task for task in GLUE if task not in medians]:
        lines.append(f"\nno GLUE average: {', '.join(missing)} missing")
    else:
        lines.append(f"\nGLUE average: {100 * glue_average(medians):.2f}")
    return "\n".join(lines)


def glue_average(scores: dict[str, dict[str, float]]) -> float:
    """The paper's average over GLUE's development sets: the mean of nine numbers, MNLI's two among
    them (of its published scores: 90.0)."""
    return statistics.mean(scores[task][name] for task, names in GLUE.items() for name in names)
