"""Several metrics of several runs, a panel each: the mean over repetitions, and their deviation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from deberta_jax import schema
from deberta_jax.errors import UserError
from deberta_jax.report import figures
from deberta_jax.report.series import BASELINE, Series, metric_label, read_series
from deberta_jax.training.metrics import read_metrics

# By label, the workdirs of its repetitions.
Runs = Mapping[str, Sequence[Path]]

_PANELS = ("train/loss", "eval/loss", "eval/mlm_accuracy", "optim/grad_norm")


def grouped(workdirs: Sequence[Path]) -> dict[str, list[Path]]:
    """{label: runs}: those whose configs differ in the seed alone are repetitions of one another.

    A label names the fields in which the groups differ, or else the run.

    Raises:
        UserError: a workdir holds no run.
    """
    groups: dict[tuple, list[Path]] = {}
    for workdir in workdirs:
        fields = schema.flatten(schema.load(workdir / "config.json"))
        fields = {name: value for name, value in fields.items() if name not in ("seed", "data.dir")}
        groups.setdefault(tuple(fields.items()), []).append(workdir)
    configs = [dict(fields) for fields in groups]
    differing = [name for name in configs[0] if len({config[name] for config in configs}) > 1]
    labels = [
        ", ".join(f"{name.split('.', 1)[-1]}={config[name]}" for name in differing)
        for config in configs
    ]
    return (
        dict(zip(labels, groups.values(), strict=True))
        if differing
        else {workdirs[0].name: list(workdirs)}
    )


def plot_panels(runs: Runs, path: Path, metrics: Sequence[str] = ()) -> None:
    """Draws metrics by step: a line for each label, the mean over its runs, in a band of ± their
    standard deviation.

    Args:
        runs: the workdirs of each label; several are repetitions, and are read at the steps that
            all of them have.
        path: where the picture goes.
        metrics: names in `metrics.jsonl`, a panel each; losses, accuracy and gradient norm, so far
            as the runs have them, where none are named.

    Raises:
        UserError: no run has one of the metrics, or any.
    """
    panels = {metric: _series(runs, metric) for metric in metrics or _PANELS}
    missing = [metric for metric, series in panels.items() if not series]
    if missing and (metrics or len(missing) == len(_PANELS)):
        raise _no_metric(runs, missing[0])
    panels = {metric: series for metric, series in panels.items() if series}
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = figures.new_figure(rows, columns, 6 * columns, 3.6 * rows + 0.4 * len(runs))
    for axis, (metric, series) in zip(axes.flat, panels.items(), strict=False):
        for label, curve in series.items():
            figures.draw_curve(
                axis, curve.steps, curve.mean,
                band=(curve.mean - curve.deviation, curve.mean + curve.deviation),
                color=f"C{list(runs).index(label) % 10}", label=_counted(label, runs[label]),
            )  # fmt: skip
        if metric == "eval/loss" and (baselines := _series(runs, BASELINE)):
            curve = next(iter(baselines.values()))
            figures.draw_curve(
                axis, curve.steps, curve.mean,
                color="gray", linestyle="--", label="unigram baseline",
            )  # fmt: skip
        figures.label_axes(axis, metric_label(metric))
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    handles: dict = {}
    for axis in axes.flat:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", fontsize=9)
    figures.save(figure, path)


def _series(runs: Runs, metric: str) -> dict[str, Series]:
    """The metric of the labels that have it."""
    every = {label: read_series(workdirs, metric) for label, workdirs in runs.items()}
    return {label: series for label, series in every.items() if series}


def _no_metric(runs: Runs, metric: str) -> UserError:
    workdirs = [workdir for group in runs.values() for workdir in group]
    known = {name for w in workdirs for line in read_metrics(w) for name in line} - {"step"}
    shown = sorted(name for name in known if not name.startswith("norms/"))
    return UserError(
        f"{', '.join(map(str, workdirs))}: metrics.jsonl has no {metric}; "
        f"it has {', '.join(shown) or 'nothing'}"
    )


def _counted(label: str, workdirs: Sequence[Path]) -> str:
    return label if len(workdirs) == 1 else f"{label} ({len(workdirs)} runs)"
