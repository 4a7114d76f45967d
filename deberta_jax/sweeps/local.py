"""A sweep on this machine: what is left is run, a few at a time, until nothing is."""

import contextlib
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
    """Where runs come from: a list, or a search that decides by what the last ones came to."""

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
        board: shows where each run stands.
        ready: prepares a run's data if need be; returns its total steps.
        arguments: those of `deberta_jax.train` for a run.

    Returns:
        The names of the runs that failed, which does not stop the others; None if a stop was
        requested.
    """
    totals: dict[str, int] = {}
    started: dict[str, Run] = {}
    failed: list[str] = []
    for run in queue.known():
        totals[run.name] = ready(run)
        tried = FAILED if (run.workdir / FAILURE).exists() else WAITING
        done = is_done(run.workdir, totals[run.name])
        board.add(run, totals[run.name], DONE if done else tried)
    with _stop_requested() as stop_requested, board, _stopped_at_the_end(pool, board):
        while not stop_requested():
            for name, status in pool.ended():
                run = started[name]
                if status:
                    failed.append(name)
                    last = (run.workdir / FAILURE).read_text().splitlines()[-1]
                    board.change(name, FAILED, last)
                    queue.tell(run, done=False)
                elif is_done(run.workdir, totals[name]):
                    board.change(name, DONE)
                    queue.tell(run, done=True)
                else:  # somebody sent it SIGTERM: it is unfinished
                    board.change(name, STOPPED)
            while pool.free and (run := queue.take()):
                if run.name not in totals:
                    totals[run.name] = ready(run)
                    board.add(run, totals[run.name])
                if is_done(run.workdir, totals[run.name]):
                    board.change(run.name, DONE, "already")
                    queue.tell(run, done=True)
                    continue
                pool.start(run.name, run.workdir, arguments(run))
                started[run.name] = run
                board.change(run.name, RUNNING)
            if not pool.running:
                return failed
            board.look()
            time.sleep(_POLL_SECONDS)
    return None


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
