"""Traces of some steps for XProf."""

from pathlib import Path
from typing import Any

import jax

from deberta_jax import storage


class Profiler:
    """Traces the steps that it is told of, into `profile` of a workdir; every process its own."""

    def __init__(self, bounds: tuple[int, int] | None, workdir: Path):
        self._bounds, self._folder, self._on = bounds, workdir / "profile", False

    def before(self, step: int, pending: Any) -> str:
        """Called when `step` steps are dispatched; returns what a person should know, or "".

        Args:
            step: how many.
            pending: arrays of the last one: a trace ends when they are there.
        """
        if self._bounds is None:
            return ""
        first, last = self._bounds
        if not self._on and first <= step < last:
            jax.block_until_ready(pending)
            self._writing = storage.writing_directory(self._folder)
            jax.profiler.start_trace(str(self._writing.__enter__()))
            self._on = True
        elif self._on and step >= last:
            return self.stop(pending)
        return ""

    def stop(self, pending: Any = None) -> str:
        """Ends a trace that is under way."""
        if not self._on:
            return ""
        jax.block_until_ready(pending)
        jax.profiler.stop_trace()
        self._writing.__exit__(None, None, None)
        self._on = False
        return f"trace written: tensorboard --logdir={self._folder} (with the plug-in xprof)"
