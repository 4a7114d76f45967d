"""The one way to files that a run writes and reads: local ones today, buckets by the same calls.

Paths are `etils.epath.Path`s, which local ones and URLs have in common, or what makes one.
"""

import contextlib
import functools
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from etils import epath

from deberta_jax.errors import PASSING, UserError, of_system

Result = TypeVar("Result")
PathLike = str | os.PathLike

SCHEMES = ("gs", "s3")
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
            if error.errno not in PASSING or number == attempts - 1:
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


def create(path: PathLike, data: str) -> bool:
    """Writes a file that is not there yet, whole; of several that try at once one succeeds.

    Returns:
        False where the file is there already.

    Raises:
        UserError: it cannot be written.
    """
    target = as_path(path)
    with one_line(path):
        if "://" in os.fspath(target):
            return _create_object(os.fspath(target), data)
        unfinished = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
        try:
            unfinished.write_text(data)
            os.link(unfinished, target)  # whole from the start; fails where the name is taken
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
        return True


def _create_object(url: str, data: str) -> bool:
    """The same in a bucket, which compares and writes in one request (`ifGenerationMatch=0`)."""
    import fsspec

    files, name = fsspec.url_to_fs(url)
    try:
        files.pipe_file(name, data.encode(), mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        if "412" in str(error) or "PreconditionFailed" in str(error):
            return False
        raise
    return True


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
        raise of_system(error, os.fspath(path)) from error


@contextlib.contextmanager
def replacing(directory: PathLike, last: str, dropped: Sequence[str] = ()) -> Iterator[epath.Path]:
    """Gives an empty folder to fill; at the end all in it moves to `directory`, over old files.

    What else lies in `directory` stays. Where filling the folder fails, `directory` is as it was,
    and what was begun is removed. The folder is on the disk of `directory`, which so needs room for
    both.

    Args:
        directory: to be made, or made anew.
        last: the file without which `directory` counts as unfinished. It goes first of the old and
            comes last of the new, so that a mixture never counts.
        dropped: patterns of old files that go even where the folder has none of their name.
    """
    target = as_path(directory)
    nearest = target
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    _remove_abandoned(nearest, target.name)
    made = nearest / f".{target.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    made.mkdir()
    try:
        yield made
        if target.exists():
            _swap(made, target, last, dropped)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.rename(target)
    finally:
        if made.exists():
            made.rmtree(missing_ok=True)


def _swap(made: epath.Path, target: epath.Path, last: str, dropped: Sequence[str]) -> None:
    """Moves all of `made` into `target`, and what it replaces into `made`; all back on failure."""
    new = sorted((path.name for path in made.iterdir()), key=lambda name: (name == last, name))
    old = {path.name for pattern in dropped for path in target.glob(pattern)}
    old |= {name for name in new if (target / name).exists()}
    aside = made / ".replaced"
    aside.mkdir()
    with contextlib.ExitStack() as undo:
        for name in sorted(old, key=lambda name: (name != last, name)):
            (target / name).rename(aside / name)
            undo.callback((aside / name).rename, target / name)
        for name in new:
            (made / name).rename(target / name)
            undo.callback((target / name).rename, made / name)
        undo.pop_all()


def _remove_abandoned(folder: epath.Path, name: str) -> None:
    """Removes the folders of `replacing` whose process on this machine was killed."""
    pattern = re.compile(rf"\.{re.escape(name)}\.{re.escape(socket.gethostname())}\.(\d+)\.\w{{8}}")
    for path in children(folder):
        if (match := pattern.fullmatch(path.name)) and not _is_alive(int(match[1])):
            path.rmtree(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
