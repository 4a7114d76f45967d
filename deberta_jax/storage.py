"""The one way to files that a run writes and reads, on a disk or in a bucket.

A path is text or a `Path`. `as_path` makes a `pathlib.Path` of a local one and an `epath.Path` of a
URL; both have the methods that are used here and elsewhere. A bucket differs from a disk in this:

- An object appears whole or not at all, and cannot be appended to (`streams`).
- A folder is but the beginning of its objects' names: it is not there while it is empty, and cannot
  be renamed. What makes several files makes them on the local disk (`writing_directory`).
- A file cannot be mapped into memory, or opened by name by a C library (`local_copy`).
- There are no file locks (`locks`).
"""

import contextlib
import functools
import glob
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, TypeVar

from deberta_jax import buckets
from deberta_jax.errors import PASSING, UserError, of_system

Result = TypeVar("Result")
PathLike = str | os.PathLike
Path = pathlib.Path

# The schemes of what Orbax writes checkpoints to.
RUN_SCHEMES = ("gs", "s3")
_ATTEMPTS, _FIRST_PAUSE_SECONDS = 5, 0.1


def is_url(path: PathLike) -> bool:
    """Whether a path is in a bucket rather than on a disk."""
    return "://" in os.fspath(path)


def as_path(path: PathLike) -> Path:
    """The path that a person means: "~" is the home directory, a URL is of a known scheme.

    Returns:
        A `pathlib.Path`, or for a URL an `epath.Path`, which has its methods.

    Raises:
        UserError: an unknown scheme, or no bucket.
    """
    text = os.fspath(path)
    return buckets.path(text) if is_url(text) else pathlib.Path(os.path.expanduser(text))


def user_path(path: PathLike) -> Path:
    """`as_path` of what a user gave; a bucket is asked for one name, so that mistakes show at once.

    Raises:
        UserError: an unknown scheme; its client is not installed; the bucket is not there, or these
            credentials may not list it.
    """
    named = as_path(path)
    if is_url(named):
        buckets.check(os.fspath(named))
    return named


def run_path(path: PathLike) -> Path:
    """`user_path` of a directory that holds checkpoints.

    Raises:
        UserError: as `user_path`, or Orbax writes no checkpoints to this storage.
    """
    scheme, colon, _ = os.fspath(path).partition("://")
    if colon and scheme in buckets.SCHEMES and scheme not in RUN_SCHEMES:
        raise UserError(
            f"{path}: a run's directory is a local path, gs:// or s3://; {scheme}:// is for text, "
            "tokenizers and exports"
        )
    return user_path(path)


def exists(path: PathLike) -> bool:
    """Whether there is something at a path; False of what can be no path, too."""
    return as_path(path).exists() if is_url(path) else os.path.exists(as_path(path))


def is_file(path: PathLike) -> bool:
    """Whether there is a file at a path; False of what can be no path, too."""
    return as_path(path).is_file() if is_url(path) else os.path.isfile(as_path(path))


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest above it at which there is something."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def absolute(path: PathLike) -> Path:
    """The path from the root on; a URL is that already."""
    return as_path(path) if is_url(path) else as_path(path).absolute()


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
    with one_line(path), writing(path) as unfinished, unfinished.open("wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
        file.flush()
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path: PathLike) -> Iterator[Path]:
    """Gives a local path to write, which becomes `path` at the end, or goes if that fails."""
    target = as_path(path)
    if is_url(target):
        with tempfile.TemporaryDirectory(prefix="deberta_jax_") as directory:
            yield Path(directory) / target.name
            _upload(Path(directory) / target.name, target)
        return
    unfinished = _beside(target)
    try:
        yield unfinished
        retried(lambda: unfinished.replace(target))
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def _beside(target: Path) -> Path:
    """A name of its own beside a file: two writers do not meet in one half-written file."""
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"


@contextlib.contextmanager
def writing_directory(
    path: PathLike, last: Sequence[str] = (), stale: Sequence[str] = ()
) -> Iterator[Path]:
    """Gives a local directory to fill. Where `path` is local, it is that one, made or not.

    For a URL it is a new one, whose files are uploaded at the end, one after another, each of which
    then leaves the disk. Nothing is uploaded if the block fails.

    Args:
        path: what is written.
        last: names of files that are uploaded after all others: they say that the rest is there.
        stale: globs of the files that go from the bucket unless they were written anew.
    """
    if not is_url(path):
        yield as_path(path)
        return
    with tempfile.TemporaryDirectory(prefix="deberta_jax_") as directory:
        made = Path(directory) / (as_path(path).name or "made")
        made.mkdir()
        yield made
        names = [file.relative_to(made).as_posix() for file in made.rglob("*") if file.is_file()]
        for name in sorted(names, key=lambda name: (name in last, name)):
            _upload(made / name, as_path(path) / name)
            (made / name).unlink()
        for old in (file for glob in stale for file in files(f"{os.fspath(path)}/{glob}")):
            if as_path(old).name not in names:
                as_path(old).unlink(missing_ok=True)


def _upload(file: Path, url: Path) -> None:
    with buckets.one_line(url, "there is no such bucket"):
        retried(lambda: buckets.client(url).put_file(str(file), os.fspath(url)))


def copy_directory(source: PathLike, target: PathLike, last: str) -> None:
    """Copies a directory of files; on a disk it appears whole, in a bucket `last` comes last."""
    contents = [(file.name, read_bytes(file)) for file in children(source) if file.is_file()]
    contents.sort(key=lambda item: item[0] == last)
    if is_url(target):
        for name, content in contents:
            write(as_path(target) / name, content)
        return
    unfinished = as_path(target).with_name(f"{as_path(target).name}.tmp")
    remove_directory(unfinished)
    unfinished.mkdir(parents=True)
    for name, content in contents:
        (unfinished / name).write_bytes(content)
    unfinished.rename(as_path(target))


def remove_directory(path: PathLike) -> None:
    """Removes a directory with all that is in it; one that is not there is no mistake."""
    if not is_url(path):
        shutil.rmtree(as_path(path), ignore_errors=True)
    elif (folder := as_path(path)).exists():
        buckets.client(folder).rm(os.fspath(folder), recursive=True)


def move_directory(source: PathLike, target: PathLike, last: str) -> None:
    """Moves a directory to where there is none, on the same disk or in the same bucket.

    Args:
        source: the directory.
        target: its new path.
        last: the file without which it counts as unfinished. A bucket moves file by file, and where
            that is cut short, one of the two directories is whole.

    Raises:
        UserError, OSError: it cannot be moved.
    """
    if is_url(source):
        buckets.move(os.fspath(source), os.fspath(target), last)
    else:
        as_path(source).rename(as_path(target))


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
        if is_url(target):
            return buckets.create(os.fspath(target), data)
        unfinished = _beside(target)
        try:
            unfinished.write_text(data)
            os.link(unfinished, target)  # whole from the start; fails where the name is taken
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
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


def read_bytes(path: PathLike) -> bytes:
    """What a file holds.

    Raises:
        UserError: it is missing, is no file, or may not be read.
    """
    with one_line(path):
        return retried(as_path(path).read_bytes)


def size(path: PathLike) -> int:
    """Bytes of a file."""
    if is_url(path):
        return buckets.client(path).size(os.fspath(path))
    return os.path.getsize(path)


def modified(path: PathLike) -> float:
    """Unix time of a file's last change."""
    if is_url(path):
        return buckets.client(path).modified(os.fspath(path)).timestamp()
    return os.path.getmtime(path)


def open_binary(path: PathLike) -> IO[bytes]:
    """Opens a file to be read from its beginning on, of any size."""
    if is_url(path):
        return buckets.client(path).open(os.fspath(path), "rb")
    return open(as_path(path), "rb")


def local_copy(directory: PathLike) -> Path:
    """A local directory with the files of `directory`, which is itself where that is local.

    A copy of a bucket's folder is kept in `~/.cache/deberta_jax/copies` (`XDG_CACHE_HOME`), under a
    name made of the files' names, sizes and checksums: what changes is fetched again. Several
    processes may ask for it at once.

    Raises:
        UserError: there is no such folder, or it is more than a checkpoint.
    """
    if not is_url(directory):
        return as_path(directory)
    return buckets.local_copy(os.fspath(directory))


def children(directory: PathLike) -> list[Path]:
    """What lies in a directory, by name; nothing where there is no directory."""
    folder = as_path(directory)
    if not folder.is_dir():
        return []
    return sorted(retried(lambda: list(folder.iterdir())), key=lambda path: path.name)


def files(pattern: str) -> list[str]:
    """The files that match a glob, sorted; "**" crosses directories, and "~" is the home directory.

    Raises:
        UserError: as `user_path`, of a URL.
    """
    if not is_url(pattern):
        matches = glob.glob(os.path.expanduser(pattern), recursive=True)
        return sorted(match for match in matches if os.path.isfile(match))
    scheme = os.fspath(user_path(pattern)).partition("://")[0]
    listed = buckets.client(pattern).glob(pattern, detail=True)
    return sorted(f"{scheme}://{name}" for name, info in listed.items() if info["type"] == "file")


def find(directory: PathLike, name: str) -> list[Path]:
    """The files of that name in a directory and below it, sorted."""
    if is_url(directory):
        return [as_path(file) for file in files(f"{os.fspath(directory)}/**/{name}")]
    return sorted(as_path(directory).rglob(name))


@contextlib.contextmanager
def one_line(path: PathLike) -> Iterator[None]:
    """Errors of the system inside, about `path`, are the user's to mend: one line each."""
    if is_url(path):
        with buckets.one_line(path):
            yield
        return
    try:
        yield
    except OSError as error:
        raise of_system(error, os.fspath(path)) from error


@contextlib.contextmanager
def replacing(directory: PathLike, last: str, dropped: Sequence[str] = ()) -> Iterator[Path]:
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
    if is_url(directory):
        with writing_directory(directory, last=(last,), stale=dropped) as made:
            yield made
        return
    target = as_path(directory)
    nearest = nearest_existing(target)
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
            remove_directory(made)


def _swap(made: Path, target: Path, last: str, dropped: Sequence[str]) -> None:
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


def _remove_abandoned(folder: Path, name: str) -> None:
    """Removes the folders of `replacing` whose process on this machine was killed."""
    pattern = re.compile(rf"\.{re.escape(name)}\.{re.escape(socket.gethostname())}\.(\d+)\.\w{{8}}")
    for path in children(folder):
        if (match := pattern.fullmatch(path.name)) and not _is_alive(int(match[1])):
            remove_directory(path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
