"""Stopping on request: SIGTERM, SIGINT, and the preemption notice of a cluster.

Three rules, whatever the process is doing. Where nothing is done that is not saved, it ends at
once. Between two steps, or two batches of an evaluation, the loop stops by itself and saves. Where
the main thread is in a compiler, which Python's handlers wait for, a thread saves and ends.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax

from deberta_jax.parallel import processes

# Exit status of a run that stopped before its end because a stop was requested, and can go on. A
# shell reports the same of a process that SIGTERM ended; schedulers restart such a job.
STOPPED = 128 + signal.SIGTERM
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds that the main thread has to react; then the watching thread acts.
_PATIENCE = 3.0


class Interrupted(Exception):
    """An evaluation was given up, because the run was told to stop."""


class Stop:
    """A loop that stops between two steps when told to. All processes agree on the step.

    Attributes:
        heard: set once the loop knows.
    """

    def __init__(self) -> None:
        self.heard = threading.Event()
        self._told, self._count = threading.Event(), 0
        # Held by the thread that saves and ends the process: the loop then stands still.
        self._leaving = threading.Lock()
        self._rescue: Callable[[], None] | None = None

    def tell(self) -> None:
        """A signal has come."""
        self._told.set()

    def requested(self) -> bool:
        """Whether to stop now; every process asks as often as every other."""
        with self._leaving:
            self._count += 1
            alone = jax.process_count() == 1
            told = self._told.is_set() if alone else processes.reached_preemption(self._count)
            if told:
                self.heard.set()
        return self.heard.is_set()

    @contextlib.contextmanager
    def rescued_by(self, rescue: Callable[[], None]) -> Iterator[None]:
        """Inside, where the loop may not react for long, `rescue` saves on another thread."""
        self._rescue = rescue
        try:
            yield
        finally:
            with self._leaving:
                self._rescue = None

    def rescue(self) -> bool:
        """Saves for a loop that does not react; whether the process may end now.

        From then on the loop stands still at its next question.
        """
        self._leaving.acquire()
        if self._rescue is None or self.heard.is_set() or jax.process_count() > 1:
            self._leaving.release()
            return False
        self._rescue()
        return True


# The loop that runs, if one does; what came before it; the pipe from the handler to the thread.
_active: Stop | None = None
_evaluating: Stop | None = None
_watching = False


def end_when_told() -> None:
    """From now on SIGTERM and SIGINT end this process with status `STOPPED`.

    Main thread only. Finally-clauses run, unless the main thread is in a compiler.
    """
    global _watching
    for number in _SIGNALS:
        signal.signal(number, _handle)
    if not _watching:
        _watching = True
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True).start()
        os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def between_steps() -> Iterator[Stop]:
    """Inside, SIGTERM and SIGINT do not end the process: the `Stop` tells that they came.

    A second SIGINT ends it at once.
    """
    global _active
    stop, before = Stop(), _active
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    _active = stop
    if main:
        for number in _SIGNALS:
            signal.signal(number, _handle)
    if jax.process_count() > 1:
        processes.listen_for_preemption()
    try:
        yield stop
    finally:
        _active = before
        if main and jax.process_count() == 1:  # of several, SIGTERM is JAX's from now on
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def evaluating(rescue: Callable[[], None]) -> Iterator[None]:
    """Inside, `check` raises `Interrupted` once the run is told to stop.

    Args:
        rescue: saves, on another thread, where the main one is in the compiler.
    """
    global _evaluating
    if _active is None:
        yield
        return
    _evaluating = _active
    try:
        with _active.rescued_by(rescue):
            yield
    finally:
        _evaluating = None


def check() -> None:
    """Between two batches of an evaluation: whether it goes on.

    Raises:
        Interrupted: the run was told to stop.
    """
    if _evaluating is not None and _evaluating.requested():
        raise Interrupted


def _handle(number: int, frame: object) -> None:
    del frame
    if _active is None or (number == signal.SIGINT and _active.heard.is_set()):
        raise SystemExit(STOPPED)
    if number == signal.SIGINT and jax.process_count() > 1:
        os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells the others of
    _active.tell()


def _forget() -> None:
    """A child that was forked is no run: signals that it gets are none of its parent's."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL)


def _watch(reading: int) -> None:
    while True:
        number = os.read(reading, 1)[0]
        # A verb may have a handler of its own, as a sweep has, which waits for its runs.
        if number in _SIGNALS and signal.getsignal(number) is _handle:
            _act()


def _act() -> None:
    """A signal has come: the main thread reacts, or this one does in its place."""
    stop, end = _active, time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        time.sleep(0.05)
        if _active is not None and _active.heard.is_set():
            return
    if _active is not stop:
        return  # the handler has run meanwhile
    if stop is None or stop.rescue():
        _leave()


def _leave() -> None:
    print("stopped; the same command goes on from there", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(STOPPED)
