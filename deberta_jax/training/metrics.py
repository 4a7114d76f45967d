"""What a run leaves to read: metrics.jsonl and TensorBoard events."""

import json
from collections.abc import Iterator
from pathlib import Path

from deberta_jax import storage
from deberta_jax.training.events import summary_writer


class MetricWriter:
    """Appends to `metrics.jsonl` and to TensorBoard events; one process of a run has one.

    A resumed run first drops what an interrupted session wrote after its last checkpoint, so that
    every step stands in the file once.
    """

    def __init__(self, workdir: Path, first_step: int):
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in _lines(self._path) if line["step"] <= first_step]
        storage.write(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", buffering=1)
        self._events = summary_writer(workdir / "tensorboard", purge_step=first_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step} | metrics) + "\n")
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()


def read_metrics(workdir: Path) -> list[dict]:
    """The lines of `metrics.jsonl`, oldest first."""
    return list(_lines(workdir / "metrics.jsonl"))


def held_out_at(workdir: Path, step: int) -> dict[str, float] | None:
    """The metrics ("eval/...") of the evaluation after `step`; None where there was none."""
    lines = [x for x in read_metrics(workdir) if x["step"] == step and "eval/loss" in x]
    if not lines:
        return None
    return {name: value for name, value in lines[-1].items() if name.startswith("eval/")}


def last_held_out(workdir: Path) -> dict[str, float]:
    """The metrics ("eval/...") of the last evaluation; none where there was none."""
    evaluations = [line for line in read_metrics(workdir) if "eval/loss" in line]
    last = evaluations[-1] if evaluations else {}
    return {name: value for name, value in last.items() if name.startswith("eval/")}


def _lines(path: Path) -> Iterator[dict]:
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the line that a killed process was writing
            return
