"""Traces of some steps for XProf."""

from pathlib import Path

import jax


class Profiler:
    """Traces the steps that it is told of, into `profile` of a workdir; every process its own."""

    def __init__(self, bounds: tuple[int, int] | None, workdir: Path):
        self._bounds, self._folder, self._on = bounds, workdir / "profile", False

    def before(self, step: int, settled) -> str:
        """Called when `step` steps are dispatched; returns what a person should know, or "".

        Args:
            step: how many.
            settled: arrays of the last one: a trace ends when they are there.
        """
        if self._bounds is None:
            return ""
        first, last = self._bounds
        if not self._on and first <= step < last:
            jax.block_until_ready(settled)
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        elif self._on and step >= last:
            return self.stop(settled)
        return ""

    def stop(self, settled=None) -> str:
        """Ends a trace that is under way."""
        if not self._on:
            return ""
        jax.block_until_ready(settled)
        jax.profiler.stop_trace()
        self._on = False
        return f"trace written: tensorboard --logdir={self._folder} (with the plug-in xprof)"
