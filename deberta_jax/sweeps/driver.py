"""Carrying out a sweep: its runs checked, prepared, run here or handed over, and reported."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from deberta_jax import locks, objectives, schema, storage
from deberta_jax.data import dataset
from deberta_jax.data.metadata import read_metadata
from deberta_jax.errors import UserError
from deberta_jax.preparation import pipeline
from deberta_jax.report.sweep_report import write_report
from deberta_jax.report.sweep_results import is_done, read_result
from deberta_jax.runs.pretraining import check_data, make_step_units
from deberta_jax.sweeps import handover
from deberta_jax.sweeps.board import Board
from deberta_jax.sweeps.local import Queue, run_all
from deberta_jax.sweeps.processes import FAILURE, Pool, claimed, divide
from deberta_jax.sweeps.search import Search
from deberta_jax.sweeps.variants import Run, SweepFile, check_data_directories, make_run

# The command line of a run, without the verb.
Arguments = Callable[[Run], list[str]]


def search(
    file: SweepFile,
    base: ConfigDict,
    workdir: Path,
    arguments: Arguments,
    *,
    trials: int,
    sampler: str,
    parallel: int,
) -> None:
    """Runs the trials of a search that are not done yet, and says which was best.

    Args:
        file: with a `search(trial)`.
        base: the recipe's config, which a trial changes fields of.
        workdir: of the sweep.
        arguments: the command line of a run.
        trials: in all.
        sampler: how they are chosen, "tpe" or "random".
        parallel: runs at a time.

    Raises:
        UserError: the file defines no search.
    """
    if file.search is None:
        raise UserError(f"{file.recipe} is no search: it defines no search(trial)")

    def make(name: str, overrides: Mapping[str, object]) -> Run:
        run = make_run(base, overrides, workdir, name)
        check([run])
        return run

    queue = Search(file.search, make, workdir, trials, sampler, file.metric, base.seed)
    try:
        run_here(file, queue, workdir, parallel, arguments)
    finally:
        if best := queue.best():
            fields = ", ".join(f"{name} {value!r}" for name, value in best.overrides.items())
            print(f"best so far: {best.name}, with {fields}")


def hand_over(
    launch: str, file: SweepFile, runs: Sequence[Run], workdir: Path, arguments: Arguments
) -> None:
    """Gives what is not done yet to a scheduler.

    Raises:
        UserError: the data is not prepared; nobody else would do it.
    """
    words = handover.read_launch(launch)
    visible = storage.is_url(workdir) or Path(*workdir.parts[:2]).exists()
    dry_run = "--dry-run" in words
    for directory in dict.fromkeys(run.data for run in runs):
        if visible and not dry_run and read_metadata(str(directory)) is None:
            raise UserError(
                f"no prepared data in {directory}; the same command with --only=prepare instead of "
                "--launch makes it"
            )
    left = [run for run in runs if not finished(run)]
    if not left:
        print(f"all {len(runs)} runs are done; --only=report compares them")
        return
    handover.hand_over(words, left, file.stem, workdir, arguments)
    if not dry_run:
        print(f"{len(left)} of {len(runs)} runs handed over; --only=report tells how far they are")


def check(runs: Sequence[Run]) -> None:
    """Raises `UserError` where a run cannot go on in its workdir, or what it learns is unknown."""
    check_data_directories(runs)
    for run in runs:
        objectives.make(run.config, None)
        path = run.workdir / "config.json"
        if path.exists() and (differing := schema.differences(schema.load(path), run.config)):
            raise UserError(
                f"{run.workdir} was started with other values ({'; '.join(differing)}); use those, "
                "or another --workdir"
            )


def ready(run: Run) -> int:
    """Prepares a run's data unless it is there, and checks it; returns the run's total steps."""
    try:
        if read_metadata(str(run.data)) is None:
            pipeline.prepare(run.config.data, run.data)
        prepared = dataset.load(run.data)
        check_data(run.config, prepared)
        return make_step_units(run.config, prepared).total_steps
    except UserError as error:
        raise UserError(f"variant {run.variant}: {error}") from error


def run_here(
    file: SweepFile, queue: Queue, workdir: Path, parallel: int, arguments: Arguments
) -> None:
    """Runs what is not done yet, and writes the report.

    Raises:
        UserError: some failed, which are named.
    """
    slots = divide(parallel)
    # Runs of one shape compile alike.
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(workdir / "compiled"))
    with locks.held(workdir, "sweep"), claimed(workdir) as lock:
        pool = Pool(slots, lock, {"JAX_COMPILATION_CACHE_DIR": compiled})
        failed = run_all(queue, pool, Board(file.stem), ready, arguments)
        report(file, queue.known(), workdir)
    if failed is None:
        print("stopped; the same command goes on from there")
    elif failed:
        raise UserError(
            f"{len(failed)} of {len(queue.known())} runs failed: {', '.join(failed)}; the same "
            "command tries them again"
        )


def finished(run: Run) -> bool:
    """Whether a run has its last checkpoint."""
    total = total_steps(run)
    return total is not None and is_done(run.workdir, total)


def total_steps(run: Run) -> int | None:
    """Steps of a whole run; None while its data is not prepared, or not to be seen from here."""
    if read_metadata(str(run.data)) is None:
        return None
    return make_step_units(run.config, dataset.load(run.data)).total_steps


def report(file: SweepFile, runs: Sequence[Run], workdir: Path) -> None:
    """Writes the report of the runs, done or not, and prints its table."""
    results = [read_result(run, total_steps(run), run.workdir / FAILURE) for run in runs]
    configs = {run.variant: run.config for run in reversed(runs)}
    configs = {run.variant: configs[run.variant] for run in runs}
    print(write_report(results, configs, workdir, file.stem, file.title, file.base))
    print(f"{workdir / 'report.html'} compares the runs; tensorboard --logdir={workdir / 'runs'}")
