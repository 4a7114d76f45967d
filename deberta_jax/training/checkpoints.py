"""Checkpoints of {state, input position, clock}, written in the background by Orbax."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers, options

from deberta_jax import storage
from deberta_jax.errors import PassingError, UserError, reason
from deberta_jax.parallel import processes
from deberta_jax.training import digests

FOLDER = "checkpoints"
# Where checkpoints go that are damaged: never deleted, never read.
SET_ASIDE = "damaged_checkpoints"
# Stands for the id of the run where checkpoints are written outside a session.
_NO_RUN = "none"
# Ends the name of a checkpoint that is being written anew.
_REPLACED = ".replaced"
# Pauses between attempts to write the checkpoint that a run ends with, in seconds.
_PAUSES = (1, 2, 4, 8, 16)


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


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """The loop asks, with a count of its own, which this one's must not disturb."""
        del step
        return False


class Checkpoints:
    """The `checkpoints` folder of a workdir. A save that was cut short is never read.

    Every checkpoint has digests of its files, which are compared before it is read.
    """

    def __init__(self, workdir: Path, keep: int = 1, read_only: bool = False):
        """
        Args:
            workdir: of the run.
            keep: how many checkpoints, the latest.
            read_only: whether nothing is saved, moved or cleaned.
        """
        self._chosen, self._run = _Chosen(set()), ""
        self._saving, self._verified, self._notes = -1, set[int](), list[str]()
        kept = [checkpoint_managers.LatestN(keep), self._chosen]
        manager_options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
            # Without an explicit commit file, any folder named by an integer would be the latest.
            atomicity_options=options.AtomicityOptions(mode=options.AtomicityMode.COMMIT_FILE),
            cleanup_tmp_directories=not read_only,
            # After everything is written, in the background, on process 0; the commit file follows.
            # Folders made in the background leave threads that wait for ever where that fails.
            async_options=options.AsyncOptions(
                post_finalization_callback=self._write_digests,
                create_directories_asynchronously=False,
            ),
        )
        self._directory = workdir / FOLDER
        if not read_only and jax.process_index() == 0:
            with storage.one_line(self._directory):
                self._end_replacing()
                self._set_aside_uncommitted()
        self._manager = _Manager(
            epath.Path(storage.absolute(self._directory)), options=manager_options
        )

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def keep(self, step: int | None) -> None:
        """From now on the checkpoint of `step` stays, whatever comes after it."""
        self._chosen.steps = set() if step is None else {step}

    def save(self, step: int, state: Any, position: dict, clock: dict) -> None:
        """Starts writing; returns once the state is copied off the devices.

        Raises:
            Exception: of many kinds; or the save before could not be written (`problem`).
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            input=ocp.args.JsonSave(position),
            clock=ocp.args.JsonSave(clock),
        )
        self._manager.wait_until_finished()
        self._saving = step
        self._manager.save(
            step, args=items, force=True, custom_metadata={"run": self._run or _NO_RUN}
        )

    def _write_digests(self) -> None:
        digests.write(self._folder(self._saving), self._run or _NO_RUN, self._saving)

    def _folder(self, step: int) -> epath.Path:
        return epath.Path(storage.absolute(self._directory)) / str(step)

    def replace(self, step: int) -> None:
        """The checkpoint of `step` may be written again; until it is, the old one stays beside."""

        def move() -> None:
            with storage.one_line(self._folder(step)):
                storage.move_directory(self._folder(step), self._beside(step), digests.COMMIT)

        processes.on_first(move)
        self._manager.reload()

    def _beside(self, step: int) -> epath.Path:
        return self._folder(step).with_name(f"{step}{_REPLACED}")

    def _end_replacing(self) -> None:
        """Deletes what was replaced, or puts it back where the new one was not finished."""
        for path in storage.children(storage.absolute(self._directory)):
            if path.name.endswith(_REPLACED):
                step = int(path.name.removesuffix(_REPLACED))
                if self.is_whole(step):
                    storage.remove_directory(path)
                else:
                    self._folder(step).rmtree(missing_ok=True)
                    storage.move_directory(path, self._folder(step), digests.COMMIT)

    def problem(self) -> str:
        """Waits for the save in progress; why it failed on any process, "" if it did not.

        What a failed save left is deleted, for it may be what fills the disk.
        """
        text = ""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax and TensorStore raise many kinds
            text = f"step {self._saving}: {reason(error, 300)}"
        text = processes.agreed(text)
        if text:
            self._discard(self._saving)
        return text

    def _discard(self, step: int) -> None:
        folder = self._folder(step)
        if jax.process_index() == 0 and not (folder / digests.COMMIT).exists():
            with contextlib.suppress(OSError):  # it is deleted when the run is started again
                folder.rmtree(missing_ok=True)

    def save_at_last(
        self,
        save: Callable[[], None],
        note: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Saves and waits; tries again after growing pauses while that fails.

        Args:
            save: calls `save`.
            note: prints a line.
            sleep: waits for so many seconds.

        Raises:
            PassingError: the last attempt failed too.
        """
        text = ""
        for pause in (*_PAUSES, None):
            text = self.attempt(save) or self.problem()
            if not text:
                return
            if pause is not None:
                note(f"the last checkpoint could not be written ({text}); again in {pause} s")
                sleep(pause)
        raise PassingError(
            f"the last checkpoint could not be written to {self._directory} ({text}); the same "
            "command goes on from the one before"
        )

    def attempt(self, save: Callable[[], None]) -> str:
        """Calls `save`; why it failed on any process, "" if it did not."""
        text = ""
        try:
            save()
        except Exception as error:  # as above
            text = f"step {self._saving}: {reason(error, 300)}"
        return processes.agreed(text)

    def is_whole(self, step: int) -> bool:
        """Whether the checkpoint of `step` was written to its end."""
        return (self._folder(step) / digests.COMMIT).exists()

    def of_run(self, run: str) -> list[str]:
        """From now on checkpoints carry this run's id, and the newest one is whole and has it.

        Newer ones that are damaged, or stand under another step's name, are moved out of
        `checkpoints`, to `damaged_checkpoints`. All processes agree on them.

        Returns:
            A line for each that was moved.

        Raises:
            UserError: the newest that is whole is of another run; or all are damaged, and then
                nothing is moved.
        """
        self._run = run
        faults: dict[int, str] = {}
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            if not (text := self._fault(step)):
                break
            faults[step] = text
        if not faults:
            return self._notes
        if len(faults) == len(steps):
            step, text = next(iter(faults.items()))
            raise UserError(
                f"no checkpoint in {self._directory} is whole ({step}: {text}); put one back from "
                "a copy, or begin anew in another --workdir"
            )
        for step, text in faults.items():
            processes.on_first(functools.partial(self._set_aside, step, text))
        self._manager.reload()
        return self._notes

    def _set_aside(self, step: int, reason: str) -> None:
        """Moves a checkpoint out of the way; on process 0."""
        source = self._folder(step)
        folder = source.parents[1] / SET_ASIDE
        names = (f"{step}", *(f"{step}-{count}" for count in range(2, 1000)))
        target = next(folder / name for name in names if not (folder / name).exists())
        with storage.one_line(source):
            folder.mkdir(parents=True, exist_ok=True)
            storage.move_directory(source, target, digests.COMMIT)
        self._notes.append(f"checkpoint {source} is damaged ({reason}); it is set aside: {target}")

    def _set_aside_uncommitted(self) -> None:
        """The same for those that are complete but for Orbax's commit file, which it would delete.

        Digests are the last but one thing that a save writes.
        """
        for folder in storage.children(storage.absolute(self._directory)):
            marked = (folder / digests.FILE).exists() and not (folder / digests.COMMIT).exists()
            if folder.name.isdecimal() and marked:
                self._set_aside(int(folder.name), f"{digests.COMMIT} is missing")

    def _fault(self, step: int) -> str:
        """What is wrong with a checkpoint; each process reads its share of the files.

        Raises:
            UserError: nothing is, but it is of another run.
        """
        if step in self._verified:
            return ""
        share = (jax.process_index(), jax.process_count())
        if text := processes.agreed(digests.fault(self._folder(step), step, share)):
            return text
        stated = (digests.read(self._folder(step)) or {}).get("run", self._run)
        if self._run and stated not in (self._run, _NO_RUN):
            raise UserError(
                f"checkpoint {self._directory / str(step)} is of another run ({stated}) than "
                f"{self._directory.parent} ({self._run}); move it back to where it came from"
            )
        self._verified.add(step)
        return ""

    def run_of_latest(self) -> str:
        """The id of the run that wrote the newest checkpoint whose digests can be read; or ""."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                run = (digests.read(self._folder(step)) or {}).get("run", _NO_RUN)
                return "" if run == _NO_RUN else run
            except UserError:
                continue
        return ""

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
        found = self._read(step, lambda: self._manager.restore(step, args=items))
        stated = found.input.get("next_step") if isinstance(found.input, dict) else None
        if stated != step:
            raise self._unreadable(step, f"input/metadata: its position is after step {stated}")
        return Restored(found.state, found.input, found.clock)

    def _read(self, step: int, read: Callable[[], Any]) -> Any:
        """What `read` returns, once the checkpoint's files are compared with their digests."""
        if fault := self._fault(step):
            raise self._unreadable(step, fault)
        try:
            return read()
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise self._unreadable(step, reason(error, 300)) from error

    def best(self) -> int | None:
        """The step of the best checkpoint, as the newest one has it (`training.best`)."""
        return (self._read_json("clock").get("best") or {}).get("step")

    def position(self) -> dict:
        """The input's position in the newest checkpoint (`Restored.input`); {} without one."""
        return self._read_json("input")

    def _read_json(self, item: str) -> dict:
        step = self.latest()
        if step is None:
            return {}
        items = ocp.args.Composite(**{item: ocp.args.JsonRestore()})
        return self._read(step, lambda: self._manager.restore(step, args=items))[item]

    def restore_params(self, abstract_params: Any, step: int | None = None) -> tuple[int, Any]:
        """(step, parameters) of the newest checkpoint, or of `step`'s, without optimizer state.

        Raises:
            UserError: there is no checkpoint, or it cannot be read.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise UserError(f"{self._directory} holds no checkpoint; train first")
        path = self._folder(step) / "state"
        arguments = ocp.args.PyTreeRestore(
            {"params": abstract_params},
            restore_args=ocp.checkpoint_utils.construct_restore_args({"params": abstract_params}),
            partial_restore=True,
        )

        def read():
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                return reader.restore(path, args=arguments)["params"]

        return step, self._read(step, read)

    def _unreadable(self, step: int, reason: str) -> UserError:
        return UserError(
            f"checkpoint {self._directory / str(step)} cannot be read ({reason}); train again, "
            "which sets it aside, or delete that folder to resume from the one before"
        )

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written; `problem` tells whether that failed."""
        with contextlib.suppress(Exception):
            self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def latest_step(workdir: Path) -> int | None:
    """The step of a workdir's newest whole checkpoint, found without opening it."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.latest()
