"""What a person sees while a run goes on: metrics fetched late, a progress line, an ETA."""

import math
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from deberta_jax.errors import UserError
from deberta_jax.training.hardware import peak_flops
from deberta_jax.training.metrics import MetricWriter
from deberta_jax.training.step_units import Clockwork


class Recorder:
    """Collects each step's metrics on the devices, and reports their means when asked.

    Only the main process of a run writes and prints.
    """

    def __init__(
        self,
        workdir: Path,
        first_step: int,
        clockwork: Clockwork,
        flops_per_token: float,
        mesh: Mesh,
        clock: dict[str, float],
        parts: list[str],
    ):
        """
        Args:
            clock: of the run so far: "begun" (Unix time) and "productive" (seconds of steps).
            parts: what `add_norms` gets the norms of (`norms.part_names`).
        """
        self._main = jax.process_index() == 0
        self._writer = MetricWriter(workdir, first_step) if self._main else None
        self._clockwork, self._step, self._pending = clockwork, first_step, []
        self._flops_per_token, self._live, self._open = flops_per_token, sys.stdout.isatty(), False
        peak, source = peak_flops(mesh.devices.flat[0])
        self._peak = peak and peak * mesh.size
        self.note(f"peak for MFU: {self._peak / 1e12:,.2f} TFLOP/s, {source}" if peak else "")
        self._since, self._untimed, self._compiled = None, 0, set()
        self._parts, self._pending_norms = parts, []
        self._waits = {"input": 0.0, "compile": 0.0, "eval": 0.0, "checkpoint": 0.0}
        self._begun, self.productive = clock["begun"], clock["productive"]

    @contextmanager
    def starting(self, shapes: tuple):
        """A step is handed to the devices. The first with a batch of some shapes compiles, and its
        time until it is handed over counts for no step."""
        start = time.perf_counter()
        yield
        if shapes not in self._compiled:
            self._compiled.add(shapes)
            self._waits["compile"] += time.perf_counter() - start

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Keeps one step's metrics; nothing is fetched yet."""
        self._step = step
        self._pending.append(metrics)
        if self._since is None:  # the first step of a session is left out of speeds
            jax.block_until_ready(metrics)
            self._since, self._untimed = time.perf_counter(), 1
            self._waits = dict.fromkeys(self._waits, 0.0)

    def add_norms(self, step: int, norms: dict[str, jax.Array]) -> None:
        """Keeps one step's norms, {kind: [parts]}, until the next report."""
        self._pending_norms.append((step, norms))

    @contextmanager
    def waiting(self, what: str):
        """Time inside is waited for "input", which is part of a step, "eval" or "checkpoint"."""
        start = time.perf_counter()
        yield
        self._waits[what] += time.perf_counter() - start

    def report(self) -> None:
        """Writes the means of the steps since the last report, and moves the progress line.

        Raises:
            UserError: the loss is no longer finite.
        """
        if not self._pending:
            return
        fetched = jax.device_get(self._pending)
        waits, self._waits = self._waits, dict.fromkeys(self._waits, 0.0)
        seconds = time.perf_counter() - self._since
        seconds -= waits["compile"] + waits["eval"] + waits["checkpoint"]
        self.productive += seconds - waits["input"]
        metrics = {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}
        metrics["optim/learning_rate"] = float(fetched[-1]["optim/learning_rate"])
        if steps := len(fetched) - self._untimed:
            speed = steps * self._clockwork.tokens_per_step / seconds
            metrics["perf/steps_per_second"] = steps / seconds
            metrics["perf/tokens_per_second"] = speed
            metrics["perf/step_seconds"] = seconds / steps
            metrics["perf/input_seconds"] = waits["input"] / steps
            if self._peak:
                metrics["perf/mfu"] = speed * self._flops_per_token / self._peak
        metrics["perf/eval_seconds"] = waits["eval"]
        metrics["perf/checkpoint_seconds"] = waits["checkpoint"]
        metrics["perf/goodput"] = self.productive / max(1e-9, time.time() - self._begun)
        self._pending, self._untimed = [], 0
        self._since = time.perf_counter()
        for step, norms in jax.device_get(self._pending_norms):
            if step == self._step:
                metrics |= self._named(norms)
            else:
                self._write(step, self._named(norms))
        self._pending_norms = []
        self._write(self._step, metrics)
        if not math.isfinite(metrics["train/loss"]):
            raise UserError(
                f"the loss is {metrics['train/loss']} at step {self._step}: lower "
                "optimizer.learning_rate and run again; it goes on from the last checkpoint"
            )
        self._show(metrics)

    def held_out(self, step: int, metrics: dict[str, float]) -> None:
        """Writes and prints a held-out evaluation."""
        self._write(step, metrics)
        values = ", ".join(f"{name.removeprefix('eval/')} {v:.4f}" for name, v in metrics.items())
        self.note(f"held out at step {step}: {values}")

    def note(self, text: str) -> None:
        """A line of its own, above the moving one."""
        if self._main and text:
            print("\n" * self._open + text, flush=True)
            self._open = False

    def close(self) -> None:
        if self._writer:
            self._writer.close()
            self.note("\r" * self._open)

    def _named(self, norms):
        """{"norms/weight/encoder/last_layer": value, ...}."""
        return {
            f"norms/{kind}/{part}": float(value)
            for kind, values in norms.items()
            for part, value in zip(self._parts, values, strict=True)
        }

    def _write(self, step, metrics):
        if self._writer:
            self._writer.write(step, metrics)

    def _show(self, metrics):
        if not self._main:
            return
        step, total = self._step, self._clockwork.total_steps
        parts = [
            f"step {step:>{len(str(total))}}/{total} {100 * step / total:5.1f}%",
            f"loss {metrics['train/loss']:.4f}",
        ]
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
        if self._live:
            print(f"\r\x1b[K{'  '.join(parts)}", end="", flush=True)
            self._open = True
        else:
            print("  ".join(parts), flush=True)


def duration_text(seconds: float) -> str:
    """75 -> "1:15", 90061 -> "1d 1:01:01"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
