"""A sweep on this machine: what is left is run, a few at a time, until nothing is."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from deberta_jax.report.sweep_results import is_done
from deberta_jax.sweeps.board import DONE, FAILED, RUNNING, STOPPED, WAITING, Board
from deberta_jax.sweeps.processes import FAILURE, Pool
from deberta_jax.sweeps.variants import Run

_POLL_SECONDS = 0.5


class Queue(Protocol):
    """Where runs come from: a list, or a search that decides by the results of the last ones."""

    def known(self) -> Sequence[Run]:
        """The runs that are certain already, in the order in which they start."""

    def take(self) -> Run | None:
        """The next run; None where there is none, or none yet."""

    def tell(self, run: Run, done: bool) -> None:
        """A run has ended, whether done or failed."""


class Listed:
    """The runs of a sweep file, one after another."""

    def __init__(self, runs: Sequence[Run]):
        self._runs, self._left = runs, list(runs)

    def known(self) -> Sequence[Run]:
        return self._runs

    def take(self) -> Run | None:
        return self._left.pop(0) if self._left else None

    def tell(self, run: Run, done: bool) -> None:
        pass


def run_all(
    queue: Queue,
    pool: Pool,
    board: Board,
    ready: Callable[[Run], int],
    arguments: Callable[[Run], list[str]],
) -> list[str] | None:
    """Runs what is not done yet; SIGTERM and SIGINT stop the runs, each with a checkpoint.

    Args:
        queue: what to run.
        pool: where.
        board: shows the state of each run.
        ready: prepares a run's data if need be; returns its total steps.
        arguments: those of `deberta_jax.train` for a run.

    Returns:
        The names of the runs that failed, which does not stop the others; None if a stop was
        requested.
    """
    sweep = _Sweep(queue, pool, board, ready, arguments)
    for run in queue.known():
        sweep.add(run)
    with _stop_requested() as stop_requested, board, _stopped_at_the_end(pool, board):
        while not stop_requested():
            sweep.collect_ended()
            sweep.start_next()
            if not pool.running:
                return sweep.failed
            board.look()
            time.sleep(_POLL_SECONDS)
    return None


@dataclasses.dataclass
class _Sweep:
    """The state of `run_all`, whose arguments it has."""

    queue: Queue
    pool: Pool
    board: Board
    ready: Callable[[Run], int]
    arguments: Callable[[Run], list[str]]
    # By name: the runs met so far, their total steps, and the names of those that failed.
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    totals: dict[str, int] = dataclasses.field(default_factory=dict)
    failed: list[str] = dataclasses.field(default_factory=list)

    def add(self, run: Run) -> None:
        """Prepares a run's data and shows the run on the board."""
        self.runs[run.name], self.totals[run.name] = run, self.ready(run)
        tried = FAILED if (run.workdir / FAILURE).exists() else WAITING
        self.board.add(run, self.totals[run.name], DONE if self._is_done(run) else tried)

    def collect_ended(self) -> None:
        """Reports the runs that have ended since the last call."""
        for name, status in self.pool.ended():
            run = self.runs[name]
            if status:
                self.failed.append(name)
                last = (run.workdir / FAILURE).read_text().splitlines()[-1]
                self.board.change(name, FAILED, last)
                self.queue.tell(run, done=False)
            elif self._is_done(run):
                self.board.change(name, DONE)
                self.queue.tell(run, done=True)
            else:  # somebody else stopped it
                self.board.change(name, STOPPED)

    def start_next(self) -> None:
        """Starts runs while there are slots for them."""
        while self.pool.free and (run := self.queue.take()):
            if run.name not in self.runs:
                self.add(run)
            if self._is_done(run):
                self.board.change(run.name, DONE, "already")
                self.queue.tell(run, done=True)
                continue
            self.pool.start(run.name, run.workdir, self.arguments(run))
            self.board.change(run.name, RUNNING)

    def _is_done(self, run: Run) -> bool:
        return is_done(run.workdir, self.totals[run.name])


@contextlib.contextmanager
def _stopped_at_the_end(pool: Pool, board: Board) -> Iterator[None]:
    """Leaves no run behind, however this ends."""
    try:
        yield
    finally:
        for name in pool.running:
            board.change(name, STOPPED)
        pool.stop()


@contextlib.contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM or SIGINT came."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
