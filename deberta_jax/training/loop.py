"""The training loop: it drives any objective from a workdir's last checkpoint to the end."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from deberta_jax.parallel import sharding
from deberta_jax.training import summary
from deberta_jax.training.best import Best
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.metrics import read_metrics
from deberta_jax.training.norms import part_names
from deberta_jax.training.profiling import Profiler
from deberta_jax.training.program import Plan
from deberta_jax.training.recorder import Recorder


def train(
    plan: Plan,
    config,
    workdir: Path,
    train_batches: Callable[[int], Iterator[dict]],
    measure: Callable[[object], dict[str, float]],
    flops_per_token: float,
    initial_params=None,
) -> dict[str, float] | None:
    """Trains to the end, or until told to stop; the same call goes on from where it stood.

    Args:
        plan: what to drive (`make_plan`).
        config: a `deberta_jax.schema.Config`; read are `seed`, `train` and `profile`.
        workdir: where checkpoints, metrics and curves go.
        train_batches: `sample -> iterator` of this process's rows of the batches after so many.
        measure: `params -> {"eval/" + metric: value}`, the held-out metrics.
        flops_per_token: model FLOPs of a training token, for the MFU.
        initial_params: `() -> parameters` to begin with; None for random ones.

    Returns:
        The last held-out metrics ("eval/loss", ...), or None where it was stopped before the end.
    """
    mesh, clockwork, every = plan.mesh, plan.clockwork, plan.every
    if jax.process_index() == 0:
        print(summary.describe(plan, config.train.batch_size, flops_per_token))
    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
    restored = checkpoints.restore(plan.abstract)
    best = Best(config.train.best_metric, config.train.patience)
    best.restore(restored and restored.clock.get("best"))
    checkpoints.keep(best.step)
    if restored and (best.exhausted or restored.input["next_step"] >= clockwork.total_steps):
        checkpoints.close()
        return _already_done(workdir, restored.input["next_step"])
    if restored:
        state, first_step = restored.state, restored.input["next_step"]
        clock = restored.clock
    else:
        params = initial_params and initial_params()
        state = plan.initialize(jax.random.key(config.seed), params)
        clock, first_step = {"seconds": 0.0, "productive": 0.0, "begun": time.time()}, 0
    parts = part_names(plan.abstract.params)
    recorder = Recorder(workdir, first_step, clockwork, flops_per_token, mesh, clock, parts)
    profiler = Profiler(config.profile.bounds(), workdir)
    started, begun = time.monotonic() - clock["seconds"], clock["begun"]

    def save(step):
        position = {"next_step": step, "batch_size": config.train.batch_size, "seed": config.seed}
        clock = {
            "seconds": time.monotonic() - started,
            "tokens": step * clockwork.tokens_per_step,
            "productive": recorder.productive,
            "begun": begun,
            "best": best.state,
        }
        checkpoints.save(step, state, position, clock)

    seed = np.uint32(config.seed)
    step, total, held_out = first_step, clockwork.total_steps, None
    if restored:
        recorder.note(f"going on after step {first_step} of {total} in {workdir}")
    try:
        with sharding.on(mesh), _told_to_stop() as told:
            batches = train_batches(first_step * config.train.batch_size)
            done = False
            while not done:
                recorder.note(profiler.before(step, state.step))
                with recorder.waiting("input"):
                    batch = sharding.to_devices(next(batches), mesh)
                shapes = tuple(rows.shape for rows in batch.values())
                trace = jax.profiler.StepTraceAnnotation("train", step_num=step)
                with recorder.starting(shapes), trace:
                    state, metrics = plan.train_step(state, batch, seed)
                # The step before is reported only now that the devices are busy with this one.
                if _due(step, every["log"]):
                    recorder.report()
                step += 1
                norms = metrics.pop("norms", None)
                if _due(step, every["norms"]):
                    recorder.add_norms(step, norms)
                recorder.add(step, metrics)

                done = step == total
                stop = not done and (told() or checkpoints.reached_preemption(step))
                measured = done or _due(step, every["eval"])
                if measured or stop or _due(step, every["checkpoint"]):
                    recorder.report()
                better = False
                if measured:
                    with recorder.waiting("eval"):
                        metrics = measure(state.params)
                        recorder.held_out(step, metrics)
                    better = best.update(step, metrics)
                    checkpoints.keep(best.step)
                    done = done or best.exhausted
                    held_out = metrics if done else None
                # After the metrics: what a checkpoint holds has always been reported.
                if done or stop or better or _due(step, every["checkpoint"]):
                    with recorder.waiting("checkpoint"):
                        save(step)
                if stop:
                    break
        recorder.note(profiler.stop(state.step))
        checkpoints.wait()
        if best.exhausted:
            recorder.note(f"stopped early at step {step}: the best was at step {best.step}")
        if not held_out:
            recorder.note(f"stopped after step {step}; the same command goes on from there")
        return held_out
    finally:
        checkpoints.close()
        recorder.close()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _already_done(workdir: Path, step: int) -> dict[str, float]:
    """Says that a run is complete; returns its last held-out metrics."""
    if jax.process_index() == 0:
        print(f"{workdir} is complete: all its {step} steps are done; nothing is changed")
    measured = [line for line in read_metrics(workdir) if "eval/loss" in line]
    last = measured[-1] if measured else {}
    return {name: value for name, value in last.items() if name.startswith("eval/")}


@contextmanager
def _told_to_stop():
    """Yields a function that says whether SIGTERM or SIGINT came; a second SIGINT interrupts."""
    received = []

    def remember(number, frame):
        del frame
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    # Several processes must agree on the step to stop at: there SIGTERM is left to JAX's preemption
    # service, which the checkpoint manager asks.
    alone = jax.process_count() == 1
    numbers = (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,)
    before = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield lambda: bool(received) and alone
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
