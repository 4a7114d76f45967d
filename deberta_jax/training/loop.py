"""The training loop: it drives any objective from a workdir's last checkpoint to the end."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deberta_jax.parallel import sharding
from deberta_jax.training import summary, watchdog
from deberta_jax.training.anomalies import Anomalies, RollBack
from deberta_jax.training.config import ProfileConfig, TrainConfig
from deberta_jax.training.finite import check_finite
from deberta_jax.training.hooks import Hook, Measure, StepEvent, default_hooks
from deberta_jax.training.metrics import last_held_out
from deberta_jax.training.program import TrainProgram
from deberta_jax.training.recorder import Recorder
from deberta_jax.training.session import Session
from deberta_jax.training.signals import Stop, between_steps
from deberta_jax.training.watchdog import Watchdog

# `sample -> iterator` of this process's rows of the batches after so many samples.
TrainBatches = Callable[[int], Iterator[dict[str, np.ndarray]]]


def train(
    program: TrainProgram,
    train_batches: TrainBatches,
    measure: Measure,
    *,
    config: TrainConfig,
    profile: ProfileConfig,
    seed: int,
    workdir: Path,
    flops_per_token: float,
    initial_params: Callable | None = None,
) -> dict[str, float] | None:
    """Trains to the end, or until told to stop; the same call goes on from where it stood.

    Args:
        program: what to drive (`make_program`).
        train_batches: the input from a sample on.
        measure: the held-out metrics of parameters.
        config: batch size, checkpoints, best metric.
        profile: which steps are traced.
        seed: of dropout and of initial parameters.
        workdir: where checkpoints and metrics go.
        flops_per_token: model FLOPs of a training token, for the MFU.
        initial_params: `() -> parameters` to begin with; None for random ones.

    Returns:
        The last held-out metrics ("eval/loss", ...), or None where it was stopped before the end.
    """
    if jax.process_index() == 0:
        print(summary.describe(program, config.batch_size, flops_per_token))
    with (
        Watchdog(config.watchdog_seconds),
        Session(program, config, seed, workdir, initial_params) as session,
    ):
        if session.complete:
            return _already_complete(workdir, session.step)
        check_finite(session.state, session.source)
        with Recorder(program, session, workdir, flops_per_token) as recorder:
            anomalies = Anomalies(program, train_batches, recorder, session)
            hooks = default_hooks(program, session, recorder, anomalies, measure, profile)
            batches = train_batches(session.sample)
            return _run(program, session, recorder, hooks, batches, np.uint32(seed))


def _run(
    program: TrainProgram,
    session: Session,
    recorder: Recorder,
    hooks: Sequence[Hook],
    batches: Iterator[dict[str, np.ndarray]],
    seed: np.uint32,
) -> dict[str, float] | None:
    for line in session.notes:
        recorder.note(line)
    if session.restored:
        done = f"step {session.step} of {session.total_steps}"
        recorder.note(f"going on after {done} in {recorder.workdir}")
    event = StepEvent(session.step, {}, session.step == session.total_steps, stopping=False)
    stop: Stop | None = None
    with sharding.on(program.mesh), contextlib.ExitStack() as stack:
        for hook in hooks:
            hook.resumed(event)
        while not (event.ends or event.stopping):
            metrics = _step(program, session, recorder, hooks, batches, seed)
            if stop is None:  # until now there was nothing to lose: a signal ended the process
                stop = stack.enter_context(between_steps())
            ends = session.step == session.total_steps
            event = StepEvent(session.step, metrics, ends, not ends and stop.requested())
            try:
                for hook in hooks:
                    hook.after_step(event)
            except RollBack as reason:
                recorder.note(str(reason))
                session.roll_back()
                for hook in hooks:
                    hook.rolled_back()
                event = StepEvent(session.step, {}, ends=False, stopping=False)
    for hook in hooks:
        hook.finish()
    if session.best.exhausted:
        best = session.best.step
        recorder.note(f"stopped early at step {session.step}: the best was at step {best}")
    if not event.ends:
        recorder.note(f"stopped after step {session.step}; the same command goes on from there")
    return event.held_out if event.ends else None


def _step(
    program: TrainProgram,
    session: Session,
    recorder: Recorder,
    hooks: Sequence[Hook],
    batches: Iterator[dict[str, np.ndarray]],
    seed: np.uint32,
) -> dict[str, Any]:
    """Hands a step to the devices; returns its metrics, which are not awaited."""
    for hook in hooks:
        hook.before_step(session.step)
    watchdog.moved("input", session.step)
    with recorder.throughput.waiting("input"):
        batch = sharding.to_devices(next(batches), program.mesh)
    watchdog.moved("compile" if session.step == session.first_step else "step")
    shapes = tuple(rows.shape for rows in batch.values())
    trace = jax.profiler.StepTraceAnnotation("train", step_num=session.step)
    with recorder.throughput.dispatching(shapes), trace:
        # Typed as the step's own results are, or the second step would be compiled anew.
        guard = sharding.whole_on_devices(session.guard, program.mesh)
        state, metrics = program.train_step(session.state, batch, seed, guard)
    for hook in hooks:
        hook.dispatched(session.step)
    session.advance(state, metrics["guard"])
    return metrics


def _already_complete(workdir: Path, step: int) -> dict[str, float]:
    """Says that a run is complete; returns its last held-out metrics."""
    if jax.process_index() == 0:
        print(f"{workdir} is complete: all its {step} steps are done; nothing is changed")
    return last_held_out(workdir)
