"""Files as people keep them, compressed or not."""

import bz2
import contextlib
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from deberta_jax import storage
from deberta_jax.errors import UserError

# What decompresses an open file, by its ending.
COMPRESSED: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
}
# What reading a file that is damaged or not there raises.
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error)


@contextlib.contextmanager
def reading(path: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed as its ending says.

    Raises:
        UserError: it cannot be opened, or read inside.
    """
    decompress = COMPRESSED.get(os.path.splitext(path)[1].lower())
    try:
        with storage.open_binary(path) as raw:
            if decompress is None:
                yield raw
                return
            with decompress(raw, "rb") as stream:
                yield stream
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {error}") from error
