"""The one way to files that a run writes and reads: local ones today, buckets by the same calls.

Paths are `etils.epath.Path`s, which local ones and URLs have in common, or what makes one.
"""

import contextlib
import errno
import functools
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from etils import epath

from deberta_jax.errors import UserError

Result = TypeVar("Result")
PathLike = str | os.PathLike

SCHEMES = ("gs", "s3")
# What another attempt may not meet again.
_PASSING = (errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.ESTALE, errno.EIO)
_ATTEMPTS, _FIRST_PAUSE_SECONDS = 5, 0.1


def as_path(path: PathLike) -> epath.Path:
    """The path that a person means: "~" is the home directory, a URL is of a known scheme.

    Raises:
        UserError: an unknown scheme.
    """
    text = os.fspath(path)
    scheme, colon, _ = text.partition("://")
    if not colon:
        return epath.Path(os.path.expanduser(text))
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise UserError(f"{text}: there is no storage {scheme}://; it must be a path, or {known}")
    return epath.Path(text)


def retried(
    attempt: Callable[[], Result],
    attempts: int = _ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """What `attempt` returns, called again after a pause that doubles where the error may pass.

    Raises:
        OSError: the last attempt's, or the first that does not pass by itself.
    """
    for number in range(attempts):
        try:
            return attempt()
        except OSError as error:
            if error.errno not in _PASSING or number == attempts - 1:
                raise
            sleep(_FIRST_PAUSE_SECONDS * 2**number)
    raise AssertionError("attempts must be at least 1")


def write(path: PathLike, data: str | bytes) -> None:
    """Writes a file whole or not at all: it is made beside the old one, which it then replaces.

    Raises:
        UserError: it cannot be written; an old file is left as it was.
    """
    with one_line(path), writing(path) as unfinished:
        mode, encoding = ("wb", None) if isinstance(data, bytes) else ("w", "utf-8")
        with unfinished.open(mode, **({"encoding": encoding} if encoding else {})) as file:
            file.write(data)
            file.flush()
            with contextlib.suppress(AttributeError, OSError):  # a bucket's file has none
                os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path: PathLike) -> Iterator[epath.Path]:
    """Gives a path beside `path` to write; it becomes `path` at the end, or goes if that fails."""
    target = as_path(path)
    # A name of its own: two writers do not meet in one half-written file.
    unfinished = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield unfinished
        retried(lambda: unfinished.replace(target))
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def write_json(path: PathLike, values: Any, **options: Any) -> None:
    """Writes JSON that a person reads; `options` are `json.dumps`'s."""
    write(path, json.dumps(values, indent=2, **options) + "\n")


def read_text(path: PathLike) -> str:
    """The text of a file.

    Raises:
        UserError: it is missing, is no file, may not be read, or is not UTF-8.
    """
    with one_line(path):
        try:
            return retried(functools.partial(as_path(path).read_text, encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error


def read_json(path: PathLike) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: as `read_text`, or it is damaged.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: it is no JSON ({error})") from error


def children(directory: PathLike) -> list[epath.Path]:
    """What lies in a directory, by name; nothing where there is no directory."""
    folder = as_path(directory)
    if not folder.is_dir():
        return []
    return sorted(retried(lambda: list(folder.iterdir())), key=lambda path: path.name)


@contextlib.contextmanager
def one_line(path: PathLike) -> Iterator[None]:
    """Errors of the system inside, about `path`, are the user's to mend: one line each."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(f"{error.filename or path}: {reason[0].lower()}{reason[1:]}") from error
