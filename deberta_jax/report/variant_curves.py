"""A sweep's variants as pictures: one metric by step, and each variant's difference to the base."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deberta_jax.report import figures
from deberta_jax.report.series import BASELINE, is_loss, metric_label, read_series
from deberta_jax.report.sweep_results import DONE, Result, Spread, metric_names, summarize

_DASHES = ("-", "--", ":", "-.")


def look(position: int) -> dict:
    """Colour and dashes of the variant at a position: every picture of a sweep has the same."""
    return {"color": f"C{position % 10}", "linestyle": _DASHES[position // 10 % len(_DASHES)]}


def plot_variants(
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
    figure, ((axis,),) = figures.new_figure(1, 1, 9, 5.2)
    drawn, levels = False, []
    for position, (label, workdirs) in enumerate(runs.items()):
        if not (series := read_series(workdirs, metric)):
            continue
        drawn, count = True, len(series.values)
        span = series.values.min(axis=0), series.values.max(axis=0)
        figures.draw_curve(
            axis, series.steps, series.mean, band=span if count > 1 else None,
            gid=f"variant-{position}", label=f"{label} ({count} seeds)" if count > 1 else label,
            marker="." if len(series.steps) < 30 else None, **look(position),
        )  # fmt: skip
        if is_loss(metric) and (level := read_series(workdirs, BASELINE)):
            levels.append(level.mean[-1])
    if not drawn:
        figures.close(figure)
        return None
    if levels:
        axis.axhline(
            levels[-1], color="black", linewidth=1, linestyle=(0, (6, 3)), label="unigram baseline"
        )
    figures.label_axes(axis, metric_label(metric))
    axis.set_title(title, loc="left", fontsize=11)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
    figures.save(figure, path, dpi=110)
    return path


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
    shown = {
        s.variant: s.differences[metric]
        for s in summaries
        if s.differences and metric in s.differences
    }
    if not shown:
        return None
    figure, ((axis,),) = figures.new_figure(1, 1, 9, 1.4 + 0.42 * len(shown))
    by_seed = _by_seed(results, metric)
    order = [summary.variant for summary in summaries]
    for row, (variant, spread) in enumerate(shown.items()):
        axis.barh(
            row, spread.mean, height=0.62, xerr=spread.deviation, capsize=3, alpha=0.75,
            color=look(order.index(variant))["color"],
        )  # fmt: skip
        ours, theirs = by_seed[variant], by_seed[base]
        dots = [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]
        axis.plot(dots, [row] * len(dots), "o", color="black", markersize=3)
    axis.set_yticks(range(len(shown)), list(shown))
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=1)
    better = "left" if is_loss(metric) else "right"
    axis.set_xlabel(f"{metric_label(metric)}: difference to {base} ({better} is better)")
    axis.set_title(_legend_of(shown.values()), loc="left", fontsize=10)
    axis.grid(alpha=0.3, axis="x")
    figures.save(figure, path, dpi=110)
    return path


def _legend_of(shown: Iterable[Spread]) -> str:
    several = any(spread.deviation is not None for spread in shown)
    return "bar: mean ± standard deviation; dot: one seed" if several else "bar: one seed"


def _by_seed(results: Sequence[Result], metric: str) -> dict[str, dict[int, float]]:
    values: dict[str, dict[int, float]] = {}
    for result in results:
        if result.state == DONE:
            values.setdefault(result.variant, {})[result.seed] = result.metrics[metric]
    return values
