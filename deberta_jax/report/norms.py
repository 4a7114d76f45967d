"""Norms of weights, gradients and updates over training, part by part of the model."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from deberta_jax.errors import UserError
from deberta_jax.report import figures
from deberta_jax.training.metrics import read_metrics

_KINDS = ("weight", "gradient", "update")
_LAYER = re.compile(r"(?:^|/)(first_layer|layers/(\d+)|last_layer)$")


def read_norms(workdir: Path) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """(steps, {kind: {part: norm at each step}}) of a run.

    Raises:
        UserError: the run recorded none.
    """
    lines = [line for line in read_metrics(workdir) if any(n.startswith("norms/") for n in line)]
    if not lines:
        raise UserError(
            f"{workdir / 'metrics.jsonl'} has no norms; train with train.norms_every, such as '1%'"
        )
    norms: dict[str, dict] = {kind: {} for kind in _KINDS}
    for name in lines[-1]:
        if name.startswith("norms/"):
            _, kind, part = name.split("/", 2)
            norms[kind][part] = np.array([line.get(name, np.nan) for line in lines])
    return np.array([line["step"] for line in lines]), norms


def draw_norms(workdir: Path, path: Path) -> None:
    """Four panels: weights, gradients, updates, and update by weight: how fast each part moves.

    Layers are coloured from the first to the last; the model's other matrices are dashed.
    """
    steps, norms = read_norms(workdir)
    norms["update ÷ weight"] = {
        part: norms["update"][part] / np.where(weight > 0, weight, np.nan)
        for part, weight in norms["weight"].items()
    }
    layers = _layers(norms["weight"])
    others = [part for part in norms["weight"] if part not in layers and "norm" not in part]
    colours = figures.colours("viridis", 0, 0.92, len(layers))
    styles = {
        part: dict(color=colour, label=label)
        for (part, label), colour in zip(layers.items(), colours, strict=True)
    }
    for number, part in enumerate(others):
        styles[part] = dict(color=f"C{(number + 1) % 10}", linestyle="--", label=part)
    figure, axes = figures.new_figure(2, 2, 11.5, 7, sharex=True)
    for axis, (kind, parts) in zip(axes.flat, norms.items(), strict=True):
        for part, style in styles.items():
            axis.plot(steps, parts[part], linewidth=1.3, **style)
        axis.set_yscale("log")
        axis.set_ylabel(f"{kind} (norm)" if kind in _KINDS else f"{kind} (ratio of norms)")
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("step")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.suptitle(workdir.name)
    figures.save(figure, path)


def _layers(parts: Iterable[str]) -> dict[str, str]:
    """{part: "layer 3"} of those that are layers, first to last; each encoder counts its own."""
    encoders: dict[str, list] = {}
    for part in parts:
        if match := _LAYER.search(part):
            end = {"first_layer": -1, "last_layer": np.inf}.get(match[1])
            depth = int(match[2]) if end is None else end
            encoders.setdefault(part[: match.start()], []).append((depth, part))
    return {
        part: f"layer {number}" if len(encoders) == 1 else f"{encoder}, layer {number}"
        for encoder, layers in encoders.items()
        for number, (_, part) in enumerate(sorted(layers), 1)
    }
