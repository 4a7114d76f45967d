"""What happens around a step: traces, metrics, evaluation, checkpoints.

Hooks run in the order of their list, on every process. A new one is a class with the methods that
it needs, and a line in `default_hooks`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deberta_jax.training import signals, watchdog
from deberta_jax.training.clocked import Clocked
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

    def resumed(self, event: StepEvent) -> None:
        """The session begins after `event.step`; what was to happen after it and did not, does."""

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
        self._compiled = False

    def resumed(self, event):
        if self._session.unmeasured:
            self._evaluate(event)

    def after_step(self, event):
        if event.ends or is_due(event.step, self._every):
            self._recorder.report()
            self._evaluate(event)

    def _evaluate(self, event):
        watchdog.moved("evaluation" if self._compiled else "compile", event.step)
        self._session.unmeasured = True
        try:
            waiting = self._recorder.throughput.waiting("eval")
            with waiting, signals.evaluating(self._rescue):
                event.held_out = self._measure(self._session.state.params)
        except signals.Interrupted:  # the next session measures
            event.ends, event.stopping = False, True
            return
        self._recorder.held_out(event.step, event.held_out)
        self._session.unmeasured, self._compiled = False, True
        best = self._session.best
        event.improved = best.update(event.step, event.held_out)
        self._session.checkpoints.keep(best.step)
        event.ends = event.ends or best.exhausted

    def _rescue(self):
        self._session.save(self._recorder.throughput.productive)
        self._session.checkpoints.wait()


class Checkpoint(Hook):
    """Saves; last, for what a checkpoint holds has always been reported.

    A save that fails ends no run before its end: the next one tries again.
    """

    def __init__(self, every: int | Clocked, session: Session, recorder: Recorder):
        self._every, self._session, self._recorder = every, session, recorder

    def resumed(self, event):
        if event.held_out is not None and event.ends:
            # The checkpoint of this step does not know of its evaluation.
            self._session.checkpoints.replace(event.step)
            self.after_step(event)

    def after_step(self, event):
        due = event.improved or self._is_due(event.step)
        if not (event.ends or event.stopping or due):
            return
        self._recorder.report()
        watchdog.moved("checkpoint", event.step)
        with self._recorder.throughput.waiting("checkpoint"):
            self._save(last=event.ends or event.stopping)

    def _is_due(self, step: int) -> bool:
        every = self._every
        return every.is_due(step) if isinstance(every, Clocked) else is_due(step, every)

    def _save(self, last):
        checkpoints, note = self._session.checkpoints, self._recorder.note
        if problem := checkpoints.problem():
            note(f"a checkpoint could not be written ({problem}); written anew now")

        def save():
            self._session.save(self._recorder.throughput.productive)

        if last:
            checkpoints.save_at_last(save, note)
        elif problem := checkpoints.attempt(save):
            note(f"a checkpoint could not be written ({problem}); the next one tries again")

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
        Checkpoint(_checkpoint_interval(every), session, recorder),
    ]


def _checkpoint_interval(every: Intervals) -> int | Clocked:
    return Clocked(every.checkpoint_seconds) if every.checkpoint_seconds else every.checkpoint
