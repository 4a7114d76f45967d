"""What happens around a step: traces, metrics, evaluation, checkpoints.

Hooks run in the order of their list, on every process. A new one is a class with the methods that
it needs, and a line in `default_hooks`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from deberta_jax.errors import listed
from deberta_jax.training import signals, watchdog
from deberta_jax.training.anomalies import Anomalies, Diverged, RollBack
from deberta_jax.training.clocked import Clocked
from deberta_jax.training.config import GuardConfig, ProfileConfig
from deberta_jax.training.finite import not_finite
from deberta_jax.training.profiling import Profiler
from deberta_jax.training.program import Intervals, TrainProgram
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

    def rolled_back(self) -> None:
        """The session has gone back to its newest checkpoint."""

    def finish(self) -> None:
        """The last step of the session is done."""


class Profile(Hook):
    """Traces some steps."""

    def __init__(self, config: ProfileConfig, session: Session, recorder: Recorder):
        self._profiler = Profiler(config.bounds(), recorder.workdir)
        self._session, self._recorder = session, recorder

    def before_step(self, step):
        self._recorder.note(self._profiler.before(step, self._session.state.step))

    def finish(self):
        self._recorder.note(self._profiler.stop(self._session.state.step))


class Guard(Hook):
    """Looks for skipped steps one step late; ends a run that cannot go on, or takes it back.

    All processes look after the same steps at what is the same on each: they do the same.
    """

    def __init__(
        self, config: GuardConfig, anomalies: Anomalies, session: Session, recorder: Recorder
    ):
        self._config, self._anomalies = config, anomalies
        self._session, self._recorder = session, recorder

    def after_step(self, event):
        # Of the steps before: the devices are busy with the one of this event.
        if is_due(event.step - 1, self._config.patience):
            self._look()
        sample = self._session.sample - self._session.batch_size
        self._anomalies.add(event.step, sample, dict(event.metrics))
        if event.ends or event.stopping:
            self._look()

    def rolled_back(self):
        self._anomalies.go_back(int(self._session.guard.skipped))
        self._recorder.go_back(self._session.step, self._session.productive)

    def check_state(self) -> None:
        """Called before a state is saved: one that is not finite never is."""
        if names := not_finite(self._session.state):
            self._give_up(
                f"the state after step {self._session.step} is not finite, in "
                + listed(names, "arrays")
            )

    def _look(self) -> None:
        if reason := self._anomalies.look():
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        session, limit = self._session, self._config.rollbacks
        newest = session.checkpoints.latest()
        if self._config.then == "rollback" and newest is not None and session.rollbacks < limit:
            raise RollBack(f"{reason}: back to step {newest}, without the batches read since")
        self._recorder.report()
        raise Diverged(
            f"{reason}: nothing was saved since "
            + (f"the checkpoint of step {newest}" if newest is not None else "the beginning")
            + (f", after {session.rollbacks} rollbacks" if session.rollbacks else "")
            + "; lower optimizer.learning_rate, or leave the batches out with guard.then=rollback"
        )


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
    """Measures on held-out data, keeps the best checkpoint, stops early.

    A metric that is not finite is never the best, and ends no run: the parameters are finite.
    """

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
        if not_finite(self._session.state):
            return  # never saved; the checkpoint before is what the next session resumes
        self._session.save(self._recorder.throughput.productive)
        self._session.checkpoints.wait()


class Checkpoint(Hook):
    """Saves; last, for what a checkpoint holds has always been reported.

    A save that fails ends no run before its end: the next one tries again. While steps are skipped
    a checkpoint that is due waits for the next step that counts: what a rollback goes back to is
    older than the fault.
    """

    def __init__(
        self,
        every: int | Clocked,
        session: Session,
        recorder: Recorder,
        check: Callable[[], None],
    ):
        self._every, self._session, self._recorder = every, session, recorder
        self._check, self._waiting = check, False

    def resumed(self, event):
        if event.held_out is not None and event.ends:
            # The checkpoint of this step does not know of its evaluation.
            self._session.checkpoints.replace(event.step)
            self.after_step(event)

    def after_step(self, event):
        last = event.ends or event.stopping
        due = self._waiting or self._is_due(event.step)
        if not (last or event.improved or due):
            return
        self._recorder.report()
        skipping = int(jax.device_get(self._session.guard.in_a_row)) > 0
        self._waiting = skipping and not (last or event.improved)
        if self._waiting:
            return
        watchdog.moved("checkpoint", event.step)
        with self._recorder.throughput.waiting("checkpoint"):
            self._check()
            self._save(last)

    def rolled_back(self):
        self._waiting = False

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
    program: TrainProgram,
    session: Session,
    recorder: Recorder,
    anomalies: Anomalies,
    measure: Measure,
    profile: ProfileConfig,
) -> list[Hook]:
    """Those of every run, in their order."""
    every = program.every
    guard = Guard(program.guard.config, anomalies, session, recorder)
    return [
        Profile(profile, session, recorder),
        guard,
        Record(recorder, every),
        Evaluate(measure, every.eval, session, recorder),
        Checkpoint(_checkpoint_interval(every), session, recorder, guard.check_state),
    ]


def _checkpoint_interval(every: Intervals) -> int | Clocked:
    return Clocked(every.checkpoint_seconds) if every.checkpoint_seconds else every.checkpoint
