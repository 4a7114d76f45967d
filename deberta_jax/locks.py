"""One process at a time in a directory, on this machine or any other, local or in a bucket.

A lock is a small file that its owner writes anew every few seconds: no system call that a bucket
or a network file system lacks. A lock of this machine is dead as soon as its process is. One of
another machine is dead when it has not been written anew for a while, as measured by the clock of
the one that waits: clocks of two machines are never compared.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import PassingError, UserError

FILE = ".lock.json"


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of what a lock waits for.

    Attributes:
        renewal: between two writes of the owner.
        lease: a lock of another machine that was not written anew for so long is dead.
        settling: after taking over from the dead, until whoever did so at the same time is seen.
    """

    renewal: float = 10.0
    lease: float = 40.0
    settling: float = 0.5


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds a lock, as the file has it.

    Attributes:
        what: what it does ("train").
        host: its machine's name.
        process: its process id.
        machine: what tells this boot of this machine, and its process ids, from any other.
        begun: when the process began, in the machine's own units: process ids are used again.
        token: of this lock alone.
    """

    what: str
    host: str
    process: int
    machine: str
    begun: str
    token: str

    def __str__(self) -> str:
        return f"{self.what}, process {self.process} on {self.host}"


@contextlib.contextmanager
def held(
    directory: storage.PathLike,
    what: str,
    timing: Timing | None = None,
    lost: Callable[[str], Any] | None = None,
) -> Iterator[None]:
    """Keeps every other process out of `directory` (made if missing) that asks in the same way.

    Args:
        directory: local, or a URL.
        what: what this process does there, for the other's message.
        timing: how often the lock is renewed, and when one is dead.
        lost: called with a line where another process has taken the lock, which it does when this
            one was suspended for long. By default the process ends with status 1: from then on
            two would write.

    Raises:
        PassingError: another process is there; the message has its host and process.
        UserError: the directory cannot be written.
    """
    timing = timing or Timing()
    folder = storage.as_path(directory)
    made = _make(folder)
    lock = _Lock(folder / FILE, _this_process(what), timing, lost or _end)
    try:
        lock.acquire(directory)
        try:
            yield
        finally:
            lock.release()
    finally:
        if made:  # a start that was refused leaves nothing
            with contextlib.suppress(OSError, ValueError):  # it is not empty
                folder.rmdir()


class _Lock:
    def __init__(self, path: Any, owner: Owner, timing: Timing, lost: Callable[[str], Any]):
        self._path, self._owner, self._timing, self._lost = path, owner, timing, lost
        self._beat, self._released = 0, threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)

    def acquire(self, directory: storage.PathLike) -> None:
        if not storage.create(self._path, self._text()):
            text = self._dead_text(directory)
            if text:
                print(f"{directory}: the lock of a process that has died is taken over", flush=True)
            storage.write(self._path, self._text())
            time.sleep(self._timing.settling)
            other = _owner(_read(self._path))
            if other is None or other.token != self._owner.token:
                raise PassingError(f"{directory} is in use ({other or 'another process'})")
        self._thread.start()

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        owner = _owner(_read(self._path))
        if owner and owner.token == self._owner.token:
            with contextlib.suppress(UserError), storage.one_line(self._path):
                self._path.unlink(missing_ok=True)

    def _dead_text(self, directory: storage.PathLike) -> str:
        """What a dead owner left; "" where the lock is gone by now.

        Raises:
            PassingError: the owner lives.
        """
        text = _read(self._path)
        owner = _owner(text)
        if owner is not None and owner.machine == self._owner.machine:
            if _is_alive(owner):
                raise _refusal(directory, owner)
            return text
        end = time.monotonic() + self._timing.lease
        while text and time.monotonic() < end:
            time.sleep(min(0.5, self._timing.renewal / 4))
            now = _read(self._path)
            if now != text:
                owner = _owner(now)
                if owner is not None:
                    raise _refusal(directory, owner)
                text = now
        return text

    def _renew(self) -> None:
        while not self._released.wait(self._timing.renewal):
            text = _read(self._path)
            owner = _owner(text)
            if owner is not None and owner.token != self._owner.token:
                self._lost(f"another process has taken over: {owner}")
                return
            self._beat += 1
            # A disk that is full for a while must not end the run: the lock only grows old.
            with contextlib.suppress(UserError):
                storage.write(self._path, self._text())

    def _text(self) -> str:
        return json.dumps(dataclasses.asdict(self._owner) | {"beat": self._beat}) + "\n"


def _refusal(directory: storage.PathLike, owner: Owner) -> PassingError:
    return PassingError(
        f"{directory} is in use by another process ({owner}); wait for it, or end it"
    )


def _make(folder: Any) -> bool:
    """Makes a directory; whether it was missing."""
    if folder.exists():
        return False
    with storage.one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return True


def _read(path: Any) -> str:
    """The text of a lock; "" where there is none, or it cannot be read."""
    try:
        return storage.read_text(path)
    except UserError:
        return ""


def _owner(text: str) -> Owner | None:
    """Who a lock's text names; None where it is damaged, as after a full disk."""
    try:
        values = json.loads(text)
        return Owner(**{field.name: values[field.name] for field in dataclasses.fields(Owner)})
    except (ValueError, TypeError, KeyError):
        return None


def _this_process(what: str) -> Owner:
    process = os.getpid()
    return Owner(
        what, socket.gethostname(), process, _machine(), _begun(process), secrets.token_hex(8)
    )


def _machine() -> str:
    """This boot of this machine, and the namespace of its process ids (a container has its own)."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"
    try:
        return f"{boot.read_text().strip()} {os.readlink(namespace)}"
    except OSError:  # not Linux: the name has to do
        return socket.gethostname()


def _begun(process: int) -> str:
    """When a process began; "" where there is none, or this is not Linux."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    state, *rest = status.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]


def _is_alive(owner: Owner) -> bool:
    if Path("/proc/self/stat").exists():
        return _begun(owner.process) == owner.begun != ""
    try:
        os.kill(owner.process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _end(line: str) -> None:
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(PassingError.status)
