"""One run in one picture: its losses, scores, learning rate and speed by step."""

from pathlib import Path

from deberta_jax.report import figures
from deberta_jax.training.metrics import read_metrics


def plot_run(workdir: Path) -> Path | None:
    """Draws `curves.png` from `metrics.jsonl`: losses, accuracies, learning rate, speed.

    Returns the picture's path; None where nothing was logged yet.
    """
    lines = read_metrics(workdir)
    if not any("train/loss" in line for line in lines):
        return None
    panels = [
        ("loss (nats)", ["train/loss", "eval/loss", "eval/unigram_loss"]),
        ("accuracy and scores", [n for n in _names(lines) if _is_score(n)]),
        ("learning rate", ["optim/learning_rate"]),
        ("tokens per second", ["perf/tokens_per_second"]),
    ]
    figure, axes = figures.new_figure(2, 2, 11, 7)
    for axis, (label, names) in zip(axes.flat, panels, strict=True):
        for name in names:
            if points := [(line["step"], line[name]) for line in lines if name in line]:
                steps, values = zip(*points, strict=True)
                figures.draw_curve(axis, steps, values, label=name, **_style(name))
        figures.label_axes(axis, label)
        if len(names) > 1:
            axis.legend()
    axes[1, 1].set_ylim(bottom=0)
    figure.suptitle(workdir.name)
    path = workdir / "curves.png"
    figures.save(figure, path, dpi=110)
    return path


def _style(name: str) -> dict:
    """One look for each kind of series, in every panel."""
    if "unigram" in name:
        return {"color": "gray", "linestyle": "--"}
    if name.startswith("eval/"):
        return {"color": "C1", "marker": "o", "markersize": 3}
    return {"color": "C0"}


def _is_score(name: str) -> bool:
    """Whether a metric is a share of something right, the larger the better."""
    measured = name.startswith(("train/", "eval/"))
    return measured and not name.endswith(("loss", "sift", "threshold"))


def _names(lines: list[dict]) -> list[str]:
    return sorted({name for line in lines for name in line})
