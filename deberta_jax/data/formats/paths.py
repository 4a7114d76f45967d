"""Lists of paths and globs, as configs and flags name files."""

import glob
import os
from collections.abc import Iterator

from deberta_jax import storage
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
        size = next((size for size in sizes if storage.is_file(joined[size])), 0)
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
    file = storage.user_path(path)
    path = os.path.expanduser(path)
    if storage.is_file(path):
        return [path]
    if storage.exists(path) and file.is_dir():
        raise UserError(f"{what} is a folder; name its files, for example {path}/**/*.jsonl")
    if storage.exists(path):
        raise UserError(
            f"{what} is a socket, a pipe or a device, and files are read more than once; "
            "write it to a file first"
        )
    matches = storage.files(path)
    if not matches:
        fault = "matches no file" if glob.has_magic(path) else "does not exist"
        seen = "" if storage.is_url(path) else f" (seen from {os.getcwd()})"
        raise UserError(f"{what} {fault}{seen}")
    return matches
