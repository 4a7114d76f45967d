"""What follows skipped steps: a note, a folder to debug them from, and an end to too many."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from deberta_jax import storage
from deberta_jax.errors import UserError
from deberta_jax.training.guard import GuardState
from deberta_jax.training.program import TrainProgram
from deberta_jax.training.recorder import Recorder
from deberta_jax.training.session import Session

FOLDER = "anomalies"


class Diverged(UserError):
    """The run cannot go on by itself. It exits with a status that no launcher restarts."""

    status = 3


class RollBack(Exception):
    """The run continues from its newest checkpoint, without the batches read since."""


class _Step(NamedTuple):
    """A step that has been handed to the devices; `metrics` are there."""

    step: int
    sample: int
    metrics: dict[str, Any]


class Anomalies:
    """Looks for skipped steps where it costs nothing, on every process at the same step."""

    def __init__(
        self,
        program: TrainProgram,
        batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
        recorder: Recorder,
        session: Session,
    ):
        """
        Args:
            program: whose steps are judged.
            batches: `sample -> iterator` over the batches from there on, which are made again.
            recorder: where notes are printed; in its workdir `anomalies` is written.
            session: the run so far.
        """
        self._guard, self._config, self._batches = program.guard, program.guard.config, batches
        self._names = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree.leaves_with_path(program.abstract.params)
        ]
        self._recorder, self._folder = recorder, recorder.workdir / FOLDER
        self._pending: list[_Step] = []
        self._seen = int(session.guard.skipped)

    def add(self, step: int, sample: int, metrics: dict[str, Any]) -> None:
        """Keeps a step until the next look; nothing is fetched.

        Args:
            step: its number, from 1.
            sample: the first of its batch.
            metrics: what it returned.
        """
        self._pending.append(_Step(step, sample, metrics))

    def look(self) -> str:
        """Reports the steps kept that were skipped; returns why the run cannot go on, or ""."""
        if not self._pending:
            return ""
        last = self._pending[-1]
        state = last.metrics["guard"]
        skipped, in_a_row = map(int, jax.device_get((state.skipped, state.in_a_row)))
        if skipped > self._seen:
            for kept in self._pending:
                if bool(jax.device_get(kept.metrics["skipped"])):
                    self._report(kept)
        self._pending, self._seen = [], skipped
        if in_a_row < self._config.patience:
            return ""
        return f"{in_a_row} steps in a row were skipped, up to step {last.step}"

    def go_back(self, skipped: int) -> None:
        """The run has gone back to where it had skipped so many steps."""
        self._pending, self._seen = [], skipped

    def _report(self, kept: _Step) -> None:
        metrics = jax.device_get(kept.metrics)
        faults = {name: float(metrics[name]) for name in self._guard.watched}
        bad = {name: value for name, value in faults.items() if not math.isfinite(value)}
        kind = "not finite" if bad else "a spike"
        shown = ", ".join(f"{name} {value:.4g}" for name, value in (bad or faults).items())
        line = f"step {kept.step} is skipped, {kind}: {shown}"
        folder = self._folder / f"step_{kept.step}"
        written = len(storage.children(self._folder))
        if folder.exists() or written < self._config.bundles:
            self._write(folder, kept, metrics, kind)
            line += f"; see {folder}"
        self._recorder.note(line)

    def _write(self, folder: Path, kept: _Step, metrics: dict[str, Any], kind: str) -> None:
        """The batch of each process, and one report: nothing of the machine or the environment."""
        folder.mkdir(parents=True, exist_ok=True)
        batch: Any = next(self._batches(kept.sample))
        index = jax.process_index()
        path = folder / f"batch_{index}.npz"
        with storage.writing(path) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, **batch)
        if index:
            return
        state: GuardState = metrics["guard"]
        scalars = {name: x for name, x in metrics.items() if np.ndim(x) == 0 and "/" in name}
        report = {
            "step": kept.step,
            "first_sample": kept.sample,
            "reason": kind,
            "skipped_in_a_row": state.in_a_row,
            "metrics": scalars,
            "running_mean": dict(state.mean),
            "running_variance": dict(state.variance),
            "gradient_norms": dict(zip(self._names, metrics["gradient_norms"], strict=True)),
            "norms": self._recorder.named(metrics.get("norms", {})),
        }
        storage.write_json(folder / "report.json", jax.tree.map(_number, report))


def _number(value: Any) -> Any:
    """As strict JSON has it: text for what is not finite."""
    if isinstance(value, str):
        return value
    number = np.asarray(value).item()
    return number if math.isfinite(number) else str(number)
