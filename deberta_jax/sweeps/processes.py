"""Runs side by side on this machine: a process each, the cores or devices divided among them."""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deberta_jax import storage
from deberta_jax.errors import UserError

# What a run prints; what it printed last if it failed.
LOG, FAILURE = "log.txt", "failure.txt"
_LAST_LINES = 12


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where one process runs: the cores it may use, and what its environment adds."""

    cores: frozenset[int] = frozenset()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def divide(parallel: int) -> list[Slot]:
    """A slot for each of `parallel` processes.

    Raises:
        UserError: there are fewer cores, or the devices cannot be divided evenly.
    """
    cores = sorted(_cores())
    if not 1 <= parallel <= len(cores):
        raise UserError(f"--parallel={parallel} must be 1 to {len(cores)}, the cores here")
    if parallel == 1:
        return [Slot()]
    platform, devices = _devices()
    slots = []
    for index in range(parallel):
        share = frozenset(
            cores[index * len(cores) // parallel : (index + 1) * len(cores) // parallel]
        )
        slots.append(Slot(share, _visible(platform, devices, parallel, index)))
    return slots


def _visible(platform: str, devices: int, parallel: int, index: int) -> dict[str, str]:
    """The environment in which a process sees its part of the devices alone."""
    if platform == "cpu":
        return {}
    if devices % parallel:
        raise UserError(f"--parallel={parallel} does not divide the {devices} {platform} devices")
    each = devices // parallel
    share = range(index * each, (index + 1) * each)
    if platform == "gpu":
        every = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(devices)))
        return {"CUDA_VISIBLE_DEVICES": ",".join(every.split(",")[i] for i in share)}
    if each > 1:
        raise UserError(
            f"--parallel={parallel}: a TPU host is divided by chip, so --parallel={devices}"
        )
    return {
        "TPU_VISIBLE_CHIPS": str(index),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


def _devices() -> tuple[str, int]:
    """(platform, number of devices) as a run will see them; this process must not take them."""
    ask = "import jax; print(jax.default_backend(), jax.local_device_count())"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if answer.returncode:
        raise UserError(f"JAX finds no devices here: {answer.stderr.strip().splitlines()[-1]}")
    platform, count = answer.stdout.split()[-2:]
    return platform, int(count)


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[int]:
    """The right to run in `workdir`; yields the file that runs must inherit to keep it.

    Raises:
        UserError: another sweep, or a run that a killed one left behind, still has it.
    """
    with _lock_file(workdir).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{workdir} is in use: another sweep runs there, or runs of one that was killed "
                "have not ended; wait for them, or end them"
            ) from None
        yield file.fileno()


def _lock_file(workdir: Path) -> Path:
    if not storage.is_url(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        return workdir / "lock"
    # A bucket has no file locks: this one is seen by the sweeps of this machine and user;
    # `locks.held` keeps out all others.
    mark = hashlib.sha256(str(workdir).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"deberta_jax_{os.getuid()}_{mark}.lock"


class Pool:
    """Runs, a process each, in a slot of its own."""

    def __init__(self, slots: list[Slot], lock: int, environment: dict[str, str]):
        """
        Args:
            slots: from `divide`.
            lock: the file that every process inherits (`claimed`).
            environment: what all processes have beside this one's.
        """
        self._free, self._lock, self._environment = list(slots), lock, environment
        self._running: dict[str, tuple[subprocess.Popen, Slot, Path]] = {}
        # What runs in a bucket print, until they end.
        self._scratch = tempfile.TemporaryDirectory(prefix="deberta_jax_")

    @property
    def free(self) -> bool:
        return bool(self._free)

    @property
    def running(self) -> list[str]:
        return list(self._running)

    def start(self, name: str, workdir: Path, arguments: list[str]) -> None:
        """Starts `python -m deberta_jax.train` with `arguments`; its output goes to `log.txt`."""
        slot = self._free.pop(0)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / FAILURE).unlink(missing_ok=True)
        command = [sys.executable, "-m", "deberta_jax.train", *arguments]
        with (self._log_directory(name, workdir) / LOG).open("a") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self._environment | slot.environment,
                pass_fds=[self._lock],
            )
        if slot.cores and hasattr(os, "sched_setaffinity"):
            # Long before it looks how many cores there are.
            os.sched_setaffinity(process.pid, slot.cores)
        self._running[name] = process, slot, workdir

    def ended(self) -> list[tuple[str, int]]:
        """(name, exit status) of every process that has ended since the last call."""
        ended = []
        for name, (process, slot, workdir) in list(self._running.items()):
            status = process.poll()
            if status is not None:
                del self._running[name]
                self._free.append(slot)
                logs = self._log_directory(name, workdir)
                if status:
                    storage.write(workdir / FAILURE, failure_text(logs, status))
                if logs != workdir:
                    storage.write(workdir / LOG, (logs / LOG).read_bytes())
                ended.append((name, status))
        return ended

    def _log_directory(self, name: str, workdir: Path) -> Path:
        if not storage.is_url(workdir):
            return workdir
        directory = Path(self._scratch.name) / name
        directory.mkdir(exist_ok=True)
        return directory

    def stop(self) -> None:
        """Asks every process to write a checkpoint and stop, and waits for them."""
        for process, _, _ in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process, _, _ in self._running.values():
            process.wait()
        self._running.clear()


def failure_text(directory: Path, status: int) -> str:
    """What a run that ended with `status` said last, by the log in a directory."""
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    lines = (directory / LOG).read_text(errors="replace").replace("\r", "\n").splitlines()
    lines = [line for line in lines if line.strip()]
    return "\n".join([how, *lines[-_LAST_LINES:]]) + "\n"
