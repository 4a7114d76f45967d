"""Checkpoints of {state, input position, clock}, written in the background by Orbax."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers, options

from deberta_jax.errors import UserError


class Restored(NamedTuple):
    """A checkpoint, read back.

    Attributes:
        state: the training state, laid out as the abstract state asked for.
        input: the input's position: {"next_step", "next_sample", "batch_size", "seed"}.
        clock: totals over all sessions: {"seconds", "tokens", "productive"}, and when the first
            one began: {"begun"}.
    """

    state: Any
    input: dict
    clock: dict


@dataclasses.dataclass
class _Chosen:
    """Orbax's policy of keeping some steps; which ones may change."""

    steps: set[int]

    def should_preserve(self, checkpoints, *, context):
        del context
        return [info.step in self.steps for info in checkpoints]


class Checkpoints:
    """The `checkpoints` folder of a workdir. A save that was cut short is never read."""

    def __init__(self, workdir: Path, keep: int = 1, read_only: bool = False):
        self._chosen = _Chosen(set())
        kept = [checkpoint_managers.LatestN(keep), self._chosen]
        manager_options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
            # Without an explicit commit file, any folder named by an integer would be the latest.
            atomicity_options=options.AtomicityOptions(mode=options.AtomicityMode.COMMIT_FILE),
            cleanup_tmp_directories=not read_only,
        )
        self._directory = workdir / "checkpoints"
        self._manager = ocp.CheckpointManager(
            epath.Path(self._directory.absolute()), options=manager_options
        )

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def keep(self, step: int | None) -> None:
        """From now on the checkpoint of `step` stays, whatever comes after it."""
        self._chosen.steps = set() if step is None else {step}

    def save(self, step: int, state: Any, position: dict, clock: dict) -> None:
        """Starts writing; returns once the state is copied off the devices."""
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            input=ocp.args.JsonSave(position),
            clock=ocp.args.JsonSave(clock),
        )
        self._manager.save(step, args=items, force=True)

    def restore(self, abstract_state: Any) -> Restored | None:
        """The newest checkpoint in the layout of `abstract_state`; None where there is none.

        Raises:
            UserError: the checkpoint cannot be read, or is of another model.
        """
        step = self.latest()
        if step is None:
            return None
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract_state),
            input=ocp.args.JsonRestore(),
            clock=ocp.args.JsonRestore(),
        )
        try:
            found = self._manager.restore(step, args=items)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise self._unreadable(step, error) from error
        return Restored(found.state, found.input, found.clock)

    def best(self) -> int | None:
        """The step of the best checkpoint, as the newest one has it (`training.best`)."""
        return (self._read_json("clock").get("best") or {}).get("step")

    def position(self) -> dict:
        """The input's position in the newest checkpoint (`Restored.input`); {} without one."""
        return self._read_json("input")

    def _read_json(self, item: str) -> dict:
        if self.latest() is None:
            return {}
        items = ocp.args.Composite(**{item: ocp.args.JsonRestore()})
        return self._manager.restore(self.latest(), args=items)[item]

    def restore_params(self, abstract_params: Any, step: int | None = None) -> tuple[int, Any]:
        """(step, parameters) of the newest checkpoint, or of `step`'s, without optimizer state.

        Raises:
            UserError: there is no checkpoint, or it cannot be read.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise UserError(f"{self._directory} holds no checkpoint; train first")
        path = epath.Path(self._directory.absolute()) / str(step) / "state"
        arguments = ocp.args.PyTreeRestore(
            {"params": abstract_params},
            restore_args=ocp.checkpoint_utils.construct_restore_args({"params": abstract_params}),
            partial_restore=True,
        )
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                return step, reader.restore(path, args=arguments)["params"]
        except Exception as error:
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, error: Exception) -> UserError:
        first = " ".join(str(error).split())[:300]
        return UserError(
            f"checkpoint {self._directory / str(step)} cannot be read ({first}); "
            "delete that folder to resume from the one before"
        )

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster has told some process to stop (always agreed on by all)."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)


def latest_step(workdir: Path) -> int | None:
    """The step of a workdir's newest whole checkpoint, found without opening it."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.latest()
