"""Learning curves of many runs, and the variants' differences, as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from deberta_jax.report.run_results import DONE, Result, Summary, metric_names, summarize
from deberta_jax.report.series import BASELINE, is_loss, metric_label, read_series

_DASHES = ("-", "--", ":", "-.")


def look(position: int) -> dict:
    """Colour and dashes of the variant at a position: every picture of a sweep has the same."""
    return {"color": f"C{position % 10}", "linestyle": _DASHES[position // 10 % len(_DASHES)]}


def plot_runs(
    runs: Mapping[str, Sequence[Path]],
    path: Path,
    metric: str = "eval/loss",
    title: str = "",
) -> Path | None:
    """Draws one metric of many runs by step: a line a label, and the span of its runs around it.

    Args:
        runs: by label, the workdirs of its repetitions.
        path: a .png or .svg; in an SVG, everything of the label at position i is in a group whose
            id begins with "variant-i-".
        metric: which one, as in `metrics.jsonl`.

    Returns:
        The path; None where no run has the metric yet.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(9, 5.2), layout="constrained")
    drawn, levels = False, []
    for position, (label, workdirs) in enumerate(runs.items()):
        if not (found := read_series(workdirs, metric)):
            continue
        drawn, count = True, len(found.values)
        axis.plot(
            found.steps, found.mean, linewidth=1.6, gid=f"variant-{position}-line",
            label=f"{label} ({count} seeds)" if count > 1 else label,
            marker="." if len(found.steps) < 30 else None, **look(position),
        )  # fmt: skip
        if count > 1:
            axis.fill_between(
                found.steps, found.values.min(axis=0), found.values.max(axis=0),
                color=look(position)["color"], alpha=0.18, linewidth=0,
                gid=f"variant-{position}-span",
            )  # fmt: skip
        if is_loss(metric) and (level := read_series(workdirs, BASELINE)):
            levels.append(level.mean[-1])
    if levels:
        axis.axhline(
            levels[-1], color="black", linewidth=1, linestyle=(0, (6, 3)), label="unigram baseline"
        )
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel(metric_label(metric))
    axis.set_title(title, loc="left", fontsize=11)
    axis.grid(alpha=0.3)
    if drawn:
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
        _save(figure, path)
    plt.close(figure)
    return path if drawn else None


def plot_differences(
    results: Sequence[Result], path: Path, metric: str = "eval/loss", base: str = ""
) -> Path | None:
    """Draws a bar for every variant: how far it is from the base, its deviation, each seed a dot.

    Returns:
        The path; None where there is nothing to compare.
    """
    if metric not in metric_names(results):
        return None
    summaries = summarize(results, base)
    base = next(summary.variant for summary in summaries if summary.differences is None)
    shown = [s for s in summaries if s.differences and metric in s.differences]
    if not shown:
        return None
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(9, 1.4 + 0.42 * len(shown)), layout="constrained")
    by_seed = _by_seed(results, metric)
    order = [summary.variant for summary in summaries]
    for row, summary in enumerate(shown):
        spread = summary.differences[metric]
        axis.barh(
            row, spread.mean, height=0.62, xerr=spread.deviation, capsize=3, alpha=0.75,
            color=look(order.index(summary.variant))["color"],
        )  # fmt: skip
        ours, theirs = by_seed[summary.variant], by_seed[base]
        dots = [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]
        axis.plot(dots, [row] * len(dots), "o", color="black", markersize=3)
    axis.set_yticks(range(len(shown)), [summary.variant for summary in shown])
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=1)
    better = "left" if is_loss(metric) else "right"
    axis.set_xlabel(f"{metric_label(metric)}: difference to {base} ({better} is better)")
    axis.set_title(_legend_of(shown, metric), loc="left", fontsize=10)
    axis.grid(alpha=0.3, axis="x")
    _save(figure, path)
    plt.close(figure)
    return path


def _legend_of(shown: Sequence[Summary], metric: str) -> str:
    several = any(summary.differences[metric].deviation is not None for summary in shown)
    return "bar: mean ± standard deviation; dot: one seed" if several else "bar: one seed"


def _by_seed(results: Sequence[Result], metric: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for result in results:
        if result.state == DONE:
            found.setdefault(result.variant, {})[result.seed] = result.metrics[metric]
    return found


def _save(figure, path: Path) -> None:
    """The same picture is the same file, whenever it is drawn."""
    dated = {"Date": None} if Path(path).suffix == ".svg" else {}
    figure.savefig(path, dpi=110, metadata=dated)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "deberta_jax"
    return plt
