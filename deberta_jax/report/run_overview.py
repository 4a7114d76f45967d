"""One run in one picture: its losses, scores, learning rate and speed by step."""

from pathlib import Path

from deberta_jax.report import figures
from deberta_jax.training.metrics import read_metrics


def plot_run(workdir: Path) -> Path | None:
    """Draws `curves.png` from `metrics.jsonl`: losses, accuracies, learning rate, speed.

    Returns the picture's path; None where nothing was logged yet.
    """
    lines = read_metrics(workdir)
    names = _names(lines)
    if "train/loss" not in names:
        return None
    panels = _two_models(names) if "train/rtd_loss" in names else _one_model(names)
    panels = [(label, series) for label, series in panels if set(series) & set(names)]
    columns = -(-len(panels) // 2)
    figure, axes = figures.new_figure(2, columns, 5.5 * columns, 7)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (label, series) in zip(axes.flat, panels, strict=False):
        shown = [name for name in series if name in names]
        for name in shown:
            points = [(line["step"], line[name]) for line in lines if name in line]
            steps, values = zip(*points, strict=True)
            style = _style(name) if len(shown) < 5 else {"marker": "o", "markersize": 3}
            figures.draw_curve(axis, steps, values, label=name, **style)
        figures.label_axes(axis, label)
        if len(shown) > 1:
            axis.legend()
    axes.flat[len(panels) - 1].set_ylim(bottom=0)
    figure.suptitle(workdir.name)
    path = workdir / "curves.png"
    figures.save(figure, path, dpi=110)
    return path


def _one_model(names: list[str]) -> list[tuple[str, list[str]]]:
    """(label, series) of each panel."""
    return [
        ("loss (nats)", ["train/loss", "eval/loss", "eval/unigram_loss"]),
        ("accuracy and scores", [n for n in names if _is_score(n)]),
        ("learning rate", ["optim/learning_rate"]),
        ("tokens per second", ["perf/tokens_per_second"]),
    ]


def _two_models(names: list[str]) -> list[tuple[str, list[str]]]:
    """Those of a generator and a discriminator."""
    scores = ["rtd_accuracy", "all_original_accuracy", "rtd_precision", "rtd_recall", "rtd_f1"]
    generator = ["train/mlm_accuracy", "eval/mlm_accuracy", "eval/sampled_original_share"]
    return [
        ("generator: loss (nats)", ["train/mlm_loss", "eval/mlm_loss", "eval/unigram_loss"]),
        ("discriminator: loss (nats)", ["train/rtd_loss", "eval/rtd_loss"]),
        ("discriminator: held-out scores", [f"eval/{name}" for name in (*scores, "rtd_auc")]),
        ("generator: accuracy", [*generator, "eval/replaced_share"]),
        ("learning rate", [n for n in names if n.endswith("/learning_rate")]),
        ("norm of the gradient", [n for n in names if n.endswith("/grad_norm")]),
        ("E_delta / E_G", ["eval/delta_norm_share"]),
        ("tokens per second", ["perf/tokens_per_second"]),
    ]


def _style(name: str) -> dict:
    """One look for each kind of series, in every panel."""
    if "unigram" in name:
        return {"color": "gray", "linestyle": "--"}
    if name.startswith("eval/"):
        other = "share" in name or "all_original" in name
        return {"color": "C2" if other else "C1", "marker": "o", "markersize": 3}
    return {"color": "C1" if "/discriminator/" in name else "C0"}


def _is_score(name: str) -> bool:
    """Whether a metric is a share of something right, the larger the better."""
    measured = name.startswith(("train/", "eval/"))
    return measured and not name.endswith(("loss", "sift", "threshold"))


def _names(lines: list[dict]) -> list[str]:
    return sorted({name for line in lines for name in line})
