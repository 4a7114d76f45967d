"""Results of a sweep: the state and metrics of each run, and the variants' means over seeds."""

import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from deberta_jax import storage
from deberta_jax.training.checkpoints import latest_step
from deberta_jax.training.metrics import last_held_out, read_metrics

DONE, FAILED, UNFINISHED, NOT_STARTED = "done", "failed", "unfinished", "not started"
# Measured beside the model, not of it.
BASELINES = ("eval/unigram_loss",)


@dataclasses.dataclass(frozen=True)
class Result:
    """One run, as its workdir describes it.

    Attributes:
        name: the run's own name.
        variant: the name that it shares with its repetitions.
        seed: in which they differ.
        changes: the fields that the variant sets.
        workdir: the run's.
        state: DONE, FAILED, UNFINISHED or NOT_STARTED.
        step: the last step of which metrics were written.
        metrics: the held-out metrics at the end; empty unless it is done.
        failure: what it said last, where it failed.
    """

    name: str
    variant: str
    seed: int
    changes: Mapping[str, object]
    workdir: Path
    state: str
    step: int
    metrics: Mapping[str, float]
    failure: str = ""


def is_done(workdir: Path, total_steps: int) -> bool:
    """Whether a run's last checkpoint is there, which it writes after its last metrics."""
    step = latest_step(workdir)
    return step is not None and step >= total_steps


class SweptRun(Protocol):
    """What a result is read of: a run of a sweep, such as `sweeps.variants.Run`."""

    @property
    def name(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def overrides(self) -> Mapping[str, object]: ...
    @property
    def workdir(self) -> Path: ...


def read_result(run: SweptRun, total_steps: int | None, failure_file: Path) -> Result:
    """Reads the state and the metrics of a run from its workdir.

    Args:
        run: which one.
        total_steps: None where it is unknown, since the data is not prepared.
        failure_file: exists if the run failed, and holds what it said last.
    """
    lines = read_metrics(run.workdir)
    step = max((line["step"] for line in lines), default=0)
    metrics: dict[str, float] = {}
    if total_steps is not None and is_done(run.workdir, total_steps):
        state = DONE
        metrics = last_held_out(run.workdir)
    elif failure_file.exists():
        state = FAILED
    else:
        state = UNFINISHED if lines else NOT_STARTED
    failure = failure_file.read_text() if state == FAILED else ""
    return Result(
        run.name, run.variant, run.seed, run.overrides, run.workdir, state, step, metrics, failure
    )


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and sample deviation of some values; the deviation of a single one is unknown."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))

    def text(self, sign: str = "") -> str:
        mean = f"{self.mean:{sign}.4f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.4f}"


@dataclasses.dataclass(frozen=True)
class Summary:
    """A variant over its seeds.

    Attributes:
        variant: its name.
        runs: how many it has; `done`: how many of them are done.
        metrics: by metric, over the runs that are done.
        differences: by metric, to the base variant: seed by seed where both have the seed, which
            leaves out what a seed does to both; else between the means. None for the base itself.
    """

    variant: str
    runs: int
    done: int
    metrics: Mapping[str, Spread]
    differences: Mapping[str, Spread] | None


def metric_names(results: Sequence[Result]) -> list[str]:
    """The held-out metrics that every finished run has, the loss first, baselines left out."""
    done = [result.metrics for result in results if result.state == DONE]
    if not done:
        return []
    shared = set.intersection(*(set(metrics) for metrics in done)) - set(BASELINES)
    return sorted(shared, key=lambda name: (name != "eval/loss", name))


def summarize(results: Sequence[Result], base: str = "") -> list[Summary]:
    """The variants in the order of the sweep; `base` is the first one unless named."""
    variants: dict[str, list[Result]] = {}
    for result in results:
        variants.setdefault(result.variant, []).append(result)
    base = base or next(iter(variants))
    names = metric_names(results)

    def by_seed(variant):
        return {r.seed: r.metrics for r in variants[variant] if r.state == DONE}

    summaries = []
    for variant, runs in variants.items():
        ours, theirs = by_seed(variant), by_seed(base)
        metrics: dict[str, Spread] = {}
        differences: dict[str, Spread] | None = None if variant == base else {}
        for name in names if ours else []:
            metrics[name] = Spread.of([values[name] for values in ours.values()])
            if differences is not None and theirs:
                differences[name] = _difference(name, ours, theirs)
        summaries.append(Summary(variant, len(runs), len(ours), metrics, differences))
    return summaries


def _difference(name: str, ours: Mapping[int, Mapping], theirs: Mapping[int, Mapping]) -> Spread:
    if shared := sorted(ours.keys() & theirs.keys()):
        return Spread.of([ours[seed][name] - theirs[seed][name] for seed in shared])
    means = [statistics.fmean(values[name] for values in runs.values()) for runs in (ours, theirs)]
    return Spread(means[0] - means[1], None, 0)


def write_csv(results: Sequence[Result], path: Path) -> None:
    """A row for each run: its state, its fields, its held-out metrics at the end."""
    fields = list(dict.fromkeys(f for r in results for f in r.changes if f != "seed"))
    names = metric_names(results)
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["run", "variant", "seed", "state", "step", *fields, *names])
    for r in results:
        values = [json.dumps(r.changes[f]) if f in r.changes else "" for f in fields]
        metrics = [r.metrics.get(name, "") for name in names]
        writer.writerow([r.name, r.variant, r.seed, r.state, r.step, *values, *metrics])
    storage.write(path, file.getvalue().encode())


def table(results: Sequence[Result], base: str = "") -> list[list[str]]:
    """Rows of cells, a head first: the variants with means, deviations and differences."""
    names = metric_names(results)
    head = ["variant", "seeds"]
    for name in names:
        head += [name.removeprefix("eval/"), "to the base"]
    rows = [head]
    for summary in summarize(results, base):
        row = [summary.variant]
        row += [
            f"{summary.done}"
            if summary.done == summary.runs
            else f"{summary.done} of {summary.runs}"
        ]
        for name in names:
            row += [summary.metrics[name].text() if name in summary.metrics else ""]
            if summary.differences is None:
                row += ["base"]
            else:
                difference = summary.differences.get(name)
                row += [difference.text("+") if difference else ""]
        rows.append(row)
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns in line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"
