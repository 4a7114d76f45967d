"""Digests of a checkpoint's files: written before it counts, compared before it is restored.

`digests.json` lies in the checkpoint's folder and names the run, the step, and of every file its
size and SHA-256. It carries a digest of itself.
"""

import concurrent.futures
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from deberta_jax import storage
from deberta_jax.errors import UserError
from deberta_jax.parallel.processes import available_cores

FILE = "digests.json"
COMMIT = "commit_success.txt"
# What Orbax knows of a checkpoint. It notes the time of the commit in it after the digests are
# made; nothing else may differ.
_METADATA, _LATER = "_CHECKPOINT_METADATA", "commit_timestamp_nsecs"
_FORMAT = 1


def write(folder: epath.Path, run: str, step: int) -> None:
    """Writes the digests of everything in a checkpoint's folder.

    Raises:
        UserError, OSError: a file cannot be read or written.
    """
    names = sorted(_files(folder))
    with _readers() as readers:
        files = dict(
            zip(names, readers.map(lambda name: _digest(folder, name), names), strict=True)
        )
    values = {"format": _FORMAT, "run": run, "step": step, "files": files}
    storage.write_json(folder / FILE, values | {"digest": _own_digest(values)})


def read(folder: epath.Path) -> dict[str, Any] | None:
    """What `write` wrote: {"run", "step", "files"}; None where the checkpoint has no digests.

    Raises:
        UserError: the file is damaged, or gone though the checkpoint was written with one.
    """
    path = folder / FILE
    if not path.exists():
        if _names_run(folder):
            raise UserError(f"{FILE} is missing")
        return None
    try:
        values = storage.read_json(path)
        stated = values.pop("digest")
        if stated != _own_digest(values):
            raise ValueError
    except (UserError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{FILE} is damaged") from None
    return values


def fault(folder: epath.Path, step: int, share: tuple[int, int] = (0, 1)) -> str:
    """What is wrong with a checkpoint, naming the file; "" where nothing is, or it has no digests.

    Args:
        folder: of the checkpoint.
        step: that the folder's name states.
        share: (index, count): of `count` readers this is one; each reads its part of the files.
    """
    try:
        stated = read(folder)
    except UserError as error:
        return str(error)
    if stated is None:
        return ""
    if stated["step"] != step:
        return f"it is a copy of the checkpoint of step {stated['step']}"
    files = stated["files"]
    # The largest first, in turn: the parts are about equal.
    names = sorted(files, key=lambda name: (-files[name][0], name))[share[0] :: share[1]]
    with _readers() as readers:
        faults = readers.map(lambda name: _fault(folder, name, files[name]), names)
        return next(filter(None, faults), "")


def _fault(folder: epath.Path, name: str, stated: list) -> str:
    try:
        found = _digest(folder, name)
    except FileNotFoundError:
        return f"{name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"{name} is damaged ({error})"
    if found != stated:
        size = f": it has {found[0]} bytes instead of {stated[0]}" if found[0] != stated[0] else ""
        return f"{name} is damaged{size}"
    return ""


def _digest(folder: epath.Path, name: str) -> list:
    """[size in bytes, SHA-256]."""
    path = folder / name
    if name == _METADATA:
        values = json.loads(path.read_text())
        data = json.dumps({k: v for k, v in values.items() if k != _LATER}, sort_keys=True)
        return [len(data), hashlib.sha256(data.encode()).hexdigest()]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.tell(), digest]


def _own_digest(values: dict) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _files(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """Names of the files in a checkpoint, relative to it, without what is written last."""
    for path in storage.children(folder / prefix):
        name = f"{prefix}{path.name}"
        if path.is_dir():
            yield from _files(folder, f"{name}/")
        elif name not in (COMMIT, FILE):
            yield name


def _names_run(folder: epath.Path) -> bool:
    """Whether a checkpoint was written with digests, as Orbax's metadata have it."""
    try:
        return bool(json.loads((folder / _METADATA).read_text())["custom_metadata"].get("run"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _readers() -> concurrent.futures.ThreadPoolExecutor:
    """Threads that read side by side: hashing and reading both leave Python to the others."""
    return concurrent.futures.ThreadPoolExecutor(min(8, available_cores()), "digests")
