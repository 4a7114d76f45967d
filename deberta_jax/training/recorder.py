"""What a person sees while a run goes on: metrics fetched late, a progress line, an ETA."""

import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deberta_jax.training.hardware import peak_flops
from deberta_jax.training.metrics import MetricWriter
from deberta_jax.training.norms import part_names
from deberta_jax.training.program import TrainProgram
from deberta_jax.training.session import Session
from deberta_jax.training.throughput import Throughput

# What a step returns for the guard's hook, and is no metric of every line.
_OF_GUARD = ("guard", "gradient_norms")


class Recorder:
    """Collects each step's metrics on the devices, and reports their means when asked.

    Only the main process of a run writes and prints.

    Attributes:
        throughput: what measures time.
        workdir: where the metrics go.
    """

    def __init__(
        self, program: TrainProgram, session: Session, workdir: Path, flops_per_token: float
    ):
        self._main, self.workdir = jax.process_index() == 0, workdir
        self._writer = MetricWriter(workdir, session.first_step) if self._main else None
        self._step, self._total_steps = session.first_step, session.total_steps
        self._parts = part_names(program.abstract.params)
        self._pending: list[dict[str, jax.Array]] = []
        self._pending_norms: list[tuple[int, Any]] = []
        self._live, self._line_open = sys.stdout.isatty(), False
        peak, source = peak_flops(program.mesh.devices.flat[0])
        peak = peak and peak * program.mesh.size
        self.note(f"peak for MFU: {peak / 1e12:,.2f} TFLOP/s, {source}" if peak else "")
        self.throughput = Throughput(
            program.units.tokens_per_step,
            flops_per_token,
            peak,
            begun=session.begun,
            productive=session.productive,
        )

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Keeps one step's metrics; nothing is fetched yet."""
        self._step = step
        self._pending.append({k: v for k, v in metrics.items() if k not in _OF_GUARD})
        self.throughput.count_step(lambda: jax.block_until_ready(metrics))

    def add_norms(self, step: int, norms: dict[str, jax.Array]) -> None:
        """Keeps one step's norms, {kind: [parts]}, until the next report."""
        self._pending_norms.append((step, norms))

    def report(self) -> None:
        """Writes the means of the steps since the last report, and moves the progress line.

        Steps that the guard skipped are no part of the means; they are counted.
        """
        if not self._pending:
            return
        fetched = jax.device_get(self._pending)
        counted = [step for step in fetched if not step.get("skipped", False)]
        names = [name for name in fetched[0] if name != "skipped"] if counted else []
        metrics = {name: float(np.mean([step[name] for step in counted])) for name in names}
        metrics |= {n: float(counted[-1][n]) for n in names if n.endswith("/learning_rate")}
        if skipped := len(fetched) - len(counted):
            metrics["guard/skipped"] = float(skipped)
        metrics |= self.throughput.report()
        first = self._step - len(fetched) + 1
        for step, norms in jax.device_get(self._pending_norms):
            if fetched[step - first].get("skipped", False):
                continue  # they are in the step's folder of `anomalies`
            if step == self._step:
                metrics |= self.named(norms)
            else:
                self._write(step, self.named(norms))
        self._pending, self._pending_norms = [], []
        self._write(self._step, metrics)
        if self._main:
            self._show(progress_line(self._step, self._total_steps, metrics))

    def go_back(self, step: int, productive: float) -> None:
        """The run has gone back to `step`: what was written of later ones goes.

        Args:
            step: steps done.
            productive: seconds of steps that the run still has.
        """
        self._pending, self._pending_norms, self._step = [], [], step
        self.throughput.report()
        self.throughput.productive = productive
        if self._writer:
            self._writer.close()
            self._writer = MetricWriter(self.workdir, step)

    def held_out(self, step: int, metrics: dict[str, float]) -> None:
        """Writes and prints a held-out evaluation."""
        self._write(step, metrics)
        values = ", ".join(f"{name.removeprefix('eval/')} {v:.4f}" for name, v in metrics.items())
        self.note(f"held out at step {step}: {values}")
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            self.note(f"not finite: {', '.join(bad)}; it is never the best")

    def note(self, text: str) -> None:
        """A line of its own, above the moving one."""
        if self._main and text:
            print("\n" * self._line_open + text, flush=True)
            self._line_open = False

    def close(self) -> None:
        if self._writer:
            self._writer.close()
            self.note("\r" * self._line_open)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def named(self, norms: Any) -> dict[str, float]:
        """{"norms/weight/encoder/last_layer": value, ...}."""
        return {
            f"norms/{kind}/{part}": float(value)
            for kind, values in norms.items()
            for part, value in zip(self._parts, values, strict=True)
        }

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        if self._writer:
            self._writer.write(step, metrics)

    def _show(self, line: str) -> None:
        if self._live:
            print(f"\r\x1b[K{line}", end="", flush=True)
            self._line_open = True
        else:
            print(line, flush=True)


def progress_line(step: int, total: int, metrics: dict[str, float]) -> str:
    """Step, loss, accuracies, speed and the time that is left."""
    parts = [f"step {step:>{len(str(total))}}/{total} {100 * step / total:5.1f}%"]
    if "train/loss" in metrics:
        parts.append(f"loss {metrics['train/loss']:.4f}")
    if "guard/skipped" in metrics:
        parts.append(f"{metrics['guard/skipped']:.0f} skipped")
    parts += [
        f"{name.removeprefix('train/')} {value:.3f}"
        for name, value in metrics.items()
        if name.startswith("train/") and name.endswith("accuracy")
    ]
    if "perf/tokens_per_second" in metrics:
        parts.append(f"{metrics['perf/tokens_per_second']:,.0f} tokens/s")
    if "perf/mfu" in metrics:
        parts.append(f"MFU {100 * metrics['perf/mfu']:.1f}%")
    if "perf/steps_per_second" in metrics:
        seconds = (total - step) / metrics["perf/steps_per_second"]
        parts.append(f"ETA {duration_text(seconds)}")
    return "  ".join(parts)


def duration_text(seconds: float) -> str:
    """75 -> "1:15", 90061 -> "1d 1:01:01"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
