"""A file of lines that grows while a run goes on, on a disk or in a bucket.

A bucket cannot append. There the stream is the file itself and parts beside it, `NAME.part-OFFSET`,
each beginning at the byte where what comes before it ends. A part is written anew, whole, while it
grows, and the next begins when it is large enough; `read` gives all as one text.
"""

import os
import tempfile
import time
from typing import Protocol

from deberta_jax import storage
from deberta_jax.storage import PathLike

_PART_BYTES = 1 << 20
# Not every line is worth a request; a killed process loses what it wrote since.
_SECONDS = 10.0
_MIRROR_SECONDS = 120.0


class Stream(Protocol):
    """What is written to."""

    def write(self, text: str) -> object: ...
    def close(self) -> None: ...


def restart(path: PathLike, content: bytes) -> Stream:
    """Replaces the stream at `path` by `content`, and gives it to be continued."""
    storage.write(path, content)
    if not storage.is_url(path):
        return _appended(path)
    for part in _parts(path):
        part.unlink(missing_ok=True)
    return _Parts(path, len(content))


def cut(path: PathLike, size: int) -> Stream:
    """Cuts the stream at `path` after `size` bytes, and gives it to be continued.

    A disk keeps those bytes where they are. A bucket gets them as one file.
    """
    if storage.is_url(path):
        return restart(path, read(path)[:size])
    file = _appended(path)
    os.truncate(storage.as_path(path), size)
    return file


def _appended(path: PathLike) -> Stream:
    return storage.as_path(path).open("a", buffering=1, encoding="utf-8")


def read(path: PathLike) -> bytes:
    """The whole stream; nothing where there is none.

    Raises:
        UserError: it cannot be read.
    """
    file = storage.as_path(path)
    content = storage.read_bytes(file) if file.exists() else b""
    for part in _parts(path) if storage.is_url(path) else ():
        # A part of an earlier start, which was killed before it could be removed, does not fit on.
        if int(part.name.rpartition("-")[2]) == len(content):
            content += storage.read_bytes(part)
    return content


def _parts(path: PathLike) -> list[storage.Path]:
    return [storage.as_path(part) for part in storage.files(f"{storage.as_path(path)}.part-*")]


class _Parts:
    """A stream in a bucket, continued after `offset` bytes."""

    def __init__(self, path: PathLike, offset: int):
        self._path, self._offset = path, offset
        self._content, self._uploaded, self._at = b"", 0, time.monotonic()

    def write(self, text: str) -> None:
        self._content += text.encode()
        full = len(self._content) >= _PART_BYTES
        if full or time.monotonic() - self._at >= _SECONDS:
            self.flush()
        if full:
            self._offset, self._content, self._uploaded = self._offset + len(self._content), b"", 0

    def flush(self) -> None:
        if self._uploaded < len(self._content):
            storage.write(f"{storage.as_path(self._path)}.part-{self._offset:016}", self._content)
            self._uploaded = len(self._content)
        self._at = time.monotonic()

    def close(self) -> None:
        self.flush()


class Mirror:
    """A local directory whose files follow to `path`; where that is local, it is the directory.

    For writers of files that grow, such as TensorBoard's: a bucket gets a file whole, again.

    Attributes:
        directory: where the writer writes.
    """

    def __init__(self, path: PathLike):
        self.directory = self._target = storage.as_path(path)
        self._scratch: tempfile.TemporaryDirectory | None = None
        if storage.is_url(path):
            self._scratch = tempfile.TemporaryDirectory(prefix="deberta_jax_")
            self.directory = storage.Path(self._scratch.name)
        self._sizes: dict[str, int] = {}
        self._at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to follow."""
        return self._scratch is not None and time.monotonic() - self._at >= _MIRROR_SECONDS

    def follow(self) -> None:
        """Uploads what has grown since the last time."""
        self._at = time.monotonic()
        for file in storage.children(self.directory) if self._scratch else ():
            content = file.read_bytes()
            if len(content) > self._sizes.get(file.name, 0):
                storage.write(self._target / file.name, content)
                self._sizes[file.name] = len(content)

    def close(self) -> None:
        self.follow()
        if self._scratch:
            self._scratch.cleanup()
