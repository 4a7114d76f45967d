"""What happens around a step: traces, metrics, evaluation, checkpoints.

Hooks run in the order of their list, on every process. A new one is a class with the methods that
it needs, and a line in `default_hooks`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deberta_jax.training.config import ProfileConfig
from deberta_jax.training.profiling import Profiler
from deberta_jax.training.program import Intervals
from deberta_jax.training.recorder import Recorder
from deberta_jax.training.session import Session

# `params -> {"eval/" + metric: value}`.
Measure = Callable[[Any], dict[str, float]]


@dataclasses.dataclass
class StepEvent:
    """A step that is done, as hooks see it and as they change it.

    Attributes:
        step: steps done, this one included.
        metrics: what the step returned, on the devices.
        ends: whether the run is complete after it. A hook may set it.
        stopping: whether the run was told to stop after it.
        held_out: the evaluation after this step, if there was one.
        improved: whether that was the best so far.
    """

    step: int
    metrics: dict[str, Any]
    ends: bool
    stopping: bool
    held_out: dict[str, float] | None = None
    improved: bool = False


class Hook:
    """Does nothing at any time; subclasses override what they need."""

    def before_step(self, step: int) -> None:
        """`step` steps are done, and the next has not begun."""

    def dispatched(self, step: int) -> None:
        """The devices are busy with the step after `step`: to wait for `step` is free now."""

    def after_step(self, event: StepEvent) -> None:
        """A step is done."""

    def finish(self) -> None:
        """The last step of the session is done."""


class Profile(Hook):
    """Traces some steps."""

    def __init__(self, config: ProfileConfig, workdir: Path, session: Session, recorder: Recorder):
        self._profiler = Profiler(config.bounds(), workdir)
        self._session, self._recorder = session, recorder

    def before_step(self, step):
        self._recorder.note(self._profiler.before(step, self._session.state.step))

    def finish(self):
        self._recorder.note(self._profiler.stop(self._session.state.step))


class Record(Hook):
    """Keeps every step's metrics on the devices; fetches and reports them one step late."""

    def __init__(self, recorder: Recorder, every: Intervals):
        self._recorder, self._every = recorder, every

    def dispatched(self, step):
        if is_due(step, self._every.log):
            self._recorder.report()

    def after_step(self, event):
        norms = event.metrics.pop("norms", None)
        if is_due(event.step, self._every.norms):
            self._recorder.add_norms(event.step, norms)
        self._recorder.add(event.step, event.metrics)


class Evaluate(Hook):
    """Measures on held-out data, keeps the best checkpoint, stops early."""

    def __init__(self, measure: Measure, every: int, session: Session, recorder: Recorder):
        self._measure, self._every = measure, every
        self._session, self._recorder = session, recorder

    def after_step(self, event):
        if not (event.ends or is_due(event.step, self._every)):
            return
        self._recorder.report()
        best = self._session.best
        with self._recorder.throughput.waiting("eval"):
            event.held_out = self._measure(self._session.state.params)
            self._recorder.held_out(event.step, event.held_out)
        event.improved = best.update(event.step, event.held_out)
        self._session.checkpoints.keep(best.step)
        event.ends = event.ends or best.exhausted


class Checkpoint(Hook):
    """Saves; last, for what a checkpoint holds has always been reported."""

    def __init__(self, every: int, session: Session, recorder: Recorder):
        self._every, self._session, self._recorder = every, session, recorder

    def after_step(self, event):
        wanted = event.ends or event.stopping or event.improved
        if not (wanted or is_due(event.step, self._every)):
            return
        self._recorder.report()
        with self._recorder.throughput.waiting("checkpoint"):
            self._session.save(self._recorder.throughput.productive)

    def finish(self):
        self._session.checkpoints.wait()


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after `step`; 0 is never."""
    return every > 0 and step % every == 0


def default_hooks(
    session: Session,
    recorder: Recorder,
    every: Intervals,
    measure: Measure,
    profile: ProfileConfig,
    workdir: Path,
) -> list[Hook]:
    """Those of every run, in their order."""
    return [
        Profile(profile, workdir, session, recorder),
        Record(recorder, every),
        Evaluate(measure, every.eval, session, recorder),
        Checkpoint(every.checkpoint, session, recorder),
    ]
