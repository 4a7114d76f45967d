"""A metric of one or many runs by step, as the learning curves draw it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deberta_jax import storage
from deberta_jax.training.metrics import read_metrics

# More points than this on one line cannot be told apart.
_MOST_POINTS = 400
# Dashed where a loss is drawn: the held-out loss of always guessing by frequency.
BASELINE = "eval/unigram_loss"


class Series(NamedTuple):
    """Repetitions of a run, at the steps that all of them have.

    Attributes:
        steps: [points].
        values: [runs, points].
    """

    steps: np.ndarray
    values: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        return self.values.mean(axis=0)

    @property
    def deviation(self) -> np.ndarray:
        return self.values.std(axis=0)


def read_series(workdirs: Sequence[Path], metric: str) -> Series | None:
    """The metric of the runs that have it; None where none has.

    Where the runs have no step in common, only the first is read.
    """
    curves = [
        {
            line["step"]: line[metric]
            for line in read_metrics(storage.as_path(workdir))
            if metric in line and math.isfinite(line[metric])
        }
        for workdir in workdirs
    ]
    curves = [curve for curve in curves if curve]
    if not curves:
        return None
    steps = sorted(set.intersection(*map(set, curves)))
    if not steps:
        curves, steps = curves[:1], sorted(curves[0])
    steps = steps[:: max(1, len(steps) // _MOST_POINTS)]
    values = np.array([[curve[step] for step in steps] for curve in curves], float)
    return Series(np.array(steps), values)


def is_loss(metric: str) -> bool:
    """Whether less is better."""
    return "loss" in metric


def metric_label(metric: str) -> str:
    where, _, name = metric.partition("/")
    unit = " (nats)" if is_loss(metric) else ""
    split = {"eval": "held-out ", "train": "training "}.get(where, "")
    return split + name.replace("_", " ").replace("grad ", "gradient ") + unit
