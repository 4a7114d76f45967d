"""A run from one start to the next stop: what is restored, how far it is, what is saved."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deberta_jax.errors import UserError
from deberta_jax.training import identity
from deberta_jax.training.best import Best
from deberta_jax.training.checkpoints import Checkpoints, Restored
from deberta_jax.training.config import TrainConfig
from deberta_jax.training.guard import GuardState, from_json, to_json
from deberta_jax.training.metrics import held_out_at
from deberta_jax.training.program import TrainProgram
from deberta_jax.training.state import TrainState


class Session:
    """The state of a run and its position, from the newest checkpoint or from the beginning.

    The order in which a run is resumed: the run's id; the newest checkpoint that is whole, newer
    ones being set aside; the best evaluation so far, whose checkpoint is kept; the input's
    position, in samples; the clock. Without a checkpoint the parameters are initialised, or taken
    from `initial_params`, in shards.

    Attributes:
        state: the training state; the loop replaces it.
        guard: what the guard knows of the steps so far; likewise.
        rollbacks: how often the run has gone back to a checkpoint.
        step: steps done.
        first_step: steps done when this session began.
        sample: samples read, which is the input's whole position.
        best: the best evaluation so far.
        begun: Unix time when the run's first session began.
        productive: seconds of steps in earlier sessions.
        restored: whether there was a checkpoint.
        notes: lines to print: which checkpoints were set aside.
        unmeasured: whether an evaluation after `step` is due and was not finished.
    """

    state: TrainState
    guard: GuardState

    def __init__(
        self,
        program: TrainProgram,
        config: TrainConfig,
        seed: int,
        workdir: Path,
        initial_params: Callable[[], Any] | None = None,
    ):
        """
        Args:
            program: what runs.
            config: batch size, and which checkpoints are kept.
            seed: of the run.
            workdir: where the checkpoints are.
            initial_params: parameters to begin with; None for random ones.

        Raises:
            UserError: no checkpoint is whole, or the newest is of another run or model, or of
                another seed.
        """
        self.total_steps = program.units.total_steps
        self._config, self._seed, self._workdir = config, seed, workdir
        self._tokens_per_step = program.units.tokens_per_step
        self._abstract = program.abstract
        self.guard, self.rollbacks = program.guard.initial(), 0
        self.unmeasured = False
        self.best = Best(config.best_metric, config.patience)
        self.checkpoints = Checkpoints(workdir, config.keep_checkpoints)
        try:
            run = identity.claim(workdir, self.checkpoints.run_of_latest())
            self.notes = self.checkpoints.of_run(run)
            restored = self.checkpoints.restore(program.abstract)
            self.restored = restored is not None
            if restored is None:
                self._begin()
            else:
                self._resume(restored)
            self.checkpoints.keep(self.best.step)
            if restored is None and not self.complete:
                params = initial_params and initial_params()
                self.state = program.initialize(jax.random.key(seed), params)
        except BaseException:
            self.checkpoints.close()
            raise

    def _begin(self) -> None:
        self.step = self.first_step = self.sample = 0
        self.begun, self.productive = time.time(), 0.0
        self._started = time.monotonic()

    def _resume(self, restored: Restored) -> None:
        position, clock = restored.input, restored.clock
        if position["seed"] != self._seed:
            raise UserError(
                f"seed is {self._seed}, but {self._workdir} was started with seed "
                f"{position['seed']}: its order of samples and its masks would change; use that "
                "seed, or another --workdir"
            )
        self.state = restored.state
        self.step = self.first_step = position["next_step"]
        # Checkpoints of version 0.1 count steps alone.
        self.sample = position.get("next_sample", self.step * position["batch_size"])
        self.best.restore(clock.get("best"))
        # Checkpoints of version 0.2 know nothing of a guard.
        self.guard = from_json(clock.get("guard"), self.guard)
        self.rollbacks = max(self.rollbacks, clock.get("rollbacks", 0))
        self.begun, self.productive = clock["begun"], clock["productive"]
        self._started = time.monotonic() - clock["seconds"]
        if clock.get("unmeasured", False):
            # It may have been finished after this checkpoint was written.
            measured = held_out_at(self._workdir, self.step)
            self.unmeasured = measured is None
            if measured is not None:
                self.best.update(self.step, measured)

    @property
    def source(self) -> str:
        """Where the state came from, for messages."""
        if self.restored:
            return f"the checkpoint of step {self.first_step} in {self._workdir}"
        return f"train.init={self._config.init}" if self._config.init else "the initial state"

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        done = self.best.exhausted or self.step >= self.total_steps
        return self.restored and done and not self.unmeasured

    @property
    def batch_size(self) -> int:
        """Samples of a step."""
        return self._config.batch_size

    def advance(self, state: TrainState, guard: GuardState) -> None:
        """A step is done."""
        self.state, self.guard = state, guard
        self.step += 1
        self.sample += self._config.batch_size

    def roll_back(self) -> None:
        """Goes back to the newest checkpoint; the input goes on where it is."""
        sample, started, first_step = self.sample, self._started, self.first_step
        self.checkpoints.wait()
        del self.state  # the devices need not hold two
        restored = self.checkpoints.restore(self._abstract)
        assert restored is not None
        self._resume(restored)
        self.sample, self._started, self.first_step = sample, started, first_step
        self.rollbacks += 1
        self.unmeasured = False
        self.guard = self.guard._replace(in_a_row=np.int32(0))

    def save(self, productive: float) -> None:
        """Starts writing a checkpoint; returns once the state is copied off the devices."""
        position = {
            "next_step": self.step,
            "next_sample": self.sample,
            "batch_size": self._config.batch_size,
            "seed": self._seed,
        }
        clock = {
            "seconds": time.monotonic() - self._started,
            "tokens": self.step * self._tokens_per_step,
            "productive": productive,
            "begun": self.begun,
            "best": self.best.state,
            "guard": to_json(self.guard),
            "rollbacks": self.rollbacks,
        }
        if self.unmeasured:
            clock["unmeasured"] = True
        self.checkpoints.save(self.step, self.state, position, clock)

    def close(self) -> None:
        self.checkpoints.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
