"""A thread that ends the process where the run stands still: a hung input, step, save, collective.

A process that hangs costs as much as one that works, and no scheduler notices it. This one ends
with the stack traces of all threads and a status of its own, and whatever started it starts it
again.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

# Exit status: 128 + SIGALRM, as a shell reports a process that an alarm ended.
HUNG = 142
# What takes longer than a step has so many times the limit.
_FACTORS = {"compile": 4.0, "start": 4.0}


class Watchdog:
    """Ends the process when nothing has moved for `seconds`.

    Attributes:
        seconds: the limit; 0 is none.
        phase: what goes on ("input", "step", ...).
    """

    def __init__(
        self, seconds: float, end: Callable[[int], object] = os._exit, file: TextIO | None = None
    ):
        """
        Args:
            seconds: the limit; 0 is none.
            end: called with `HUNG`.
            file: where line and stack traces go, one with a file descriptor; None for stderr.
        """
        self.seconds = seconds
        self._end, self._file = end, file
        self.phase, self._step, self._since = "start", 0, time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def moved(self, phase: str, step: int | None = None) -> None:
        """Something is done, and now `phase` begins."""
        self.phase, self._since = phase, time.monotonic()
        if step is not None:
            self._step = step

    def __enter__(self):
        global _active
        if self.seconds:
            self._since, _active = time.monotonic(), self
            self._thread.start()
        return self

    def __exit__(self, *_):
        global _active
        self._closed.set()
        if self.seconds:
            _active = None
            self._thread.join()

    def _watch(self) -> None:
        pause = min(1.0, self.seconds / 10)
        woken = time.monotonic()
        while not self._closed.wait(pause):
            now = time.monotonic()
            if now - woken > pause + 2:  # the whole process was suspended: not its fault
                self._since += now - woken - pause
            woken = now
            limit = self.seconds * _FACTORS.get(self.phase, 1.0)
            if now - self._since > limit:
                self._bark(now - self._since)
                return

    def _bark(self, seconds: float) -> None:
        file = self._file or sys.stderr
        print(
            f"error: nothing has moved for {seconds:.0f} s, after step {self._step}, in "
            f"{self.phase!r} (train.watchdog_seconds={self.seconds:g}); the same command goes on "
            "from the last checkpoint. What every thread was doing:",
            file=file,
            flush=True,
        )
        faulthandler.dump_traceback(file, all_threads=True)
        self._end(HUNG)


_active: Watchdog | None = None


def moved(phase: str, step: int | None = None) -> None:
    """Something is done, and now `phase` begins; nothing happens where nobody watches."""
    if _active is not None:
        _active.moved(phase, step)


def beat() -> None:
    """The phase goes on: a batch of an evaluation is done."""
    if _active is not None:
        _active.moved(_active.phase)
