"""Lists of paths and globs, as configs and flags name files."""

import glob
import os
from collections.abc import Iterator

from deberta_jax.data import names
from deberta_jax.errors import UserError

# Commas in one file's name that are looked for, at most.
_COMMAS = 8


def split(text: str) -> list[str]:
    r"""The paths of "a,b": cut at commas, except where a file has the comma in its name.

    A comma behind a backslash parts nothing.
    """
    return list(_split(names.parts(text, ",")))


def _split(pieces: list[str]) -> Iterator[str]:
    while pieces:
        sizes = range(min(len(pieces), _COMMAS + 1), 0, -1)
        joined = {size: ",".join(pieces[:size]).strip() for size in sizes}
        size = next((size for size in sizes if _is_file(joined[size])), 0)
        if path := joined[size] if size else names.plain(joined[1]):
            yield path
        pieces = pieces[size or 1 :]


def matches(path: str, what: str) -> list[str]:
    """The file at `path`; else those that match it as a glob, sorted.

    Args:
        path: of a file, or a glob; "~" is the home directory.
        what: the path as the user wrote it, for messages.

    Raises:
        UserError: there is no such file, or it is a folder, a pipe or the like.
    """
    path = os.path.expanduser(path)
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        raise UserError(f"{what} is a folder; name its files, for example {path}/**/*.jsonl")
    if os.path.exists(path):
        raise UserError(
            f"{what} is a socket, a pipe or a device, and files are read more than once; "
            "write it to a file first"
        )
    found = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
    if not found:
        fault = "matches no file" if glob.has_magic(path) else "does not exist"
        raise UserError(f"{what} {fault} (seen from {os.getcwd()})")
    return found


def _is_file(path: str) -> bool:
    return os.path.isfile(os.path.expanduser(path))
