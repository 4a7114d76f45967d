"""Lines of files that users bring, and what the ending of a file says of its format."""

import codecs
import itertools
import os
from collections.abc import Iterator

from deberta_jax.data.compressed import COMPRESSED, reading
from deberta_jax.errors import UserError

# What no reader takes for part of a text: JSON's blanks, which end a line or stand around it.
BLANKS = " \t\r\n"


def ending(path: str) -> str:
    """The ending that tells a file's format, in lower case: ".csv" of "A.CSV.GZ"."""
    stem, last = os.path.splitext(path.lower())
    return os.path.splitext(stem)[1] if last in COMPRESSED else last


def raw_lines(path: str, limit: int = -1) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes with the "\\n" that ends them) of every line, decompressed.

    A byte order mark before the first line is left out. Of a line longer than `limit` bytes, the
    first `limit` + 1 are given; the caller has to stop there.

    Raises:
        UserError: the file cannot be read, or is UTF-16 or UTF-32.
    """
    with reading(path) as stream:
        for number in itertools.count(1):
            raw = stream.readline(limit + 1 if limit >= 0 else -1)
            if not raw:
                return
            if number == 1:
                refuse_wide(raw, path)
                raw, marked = raw.removeprefix(codecs.BOM_UTF8), raw.startswith(codecs.BOM_UTF8)
                if marked and limit >= 0 and not raw.endswith(b"\n"):
                    raw += stream.readline(len(codecs.BOM_UTF8))
            yield number, raw


def refuse_wide(beginning: bytes, path: str) -> None:
    """Raises `UserError` where a file begins as UTF-16 and UTF-32 do."""
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}:1: not UTF-8 but UTF-16; save the file as UTF-8")


def text_lines(path: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its end) of every line; "\\r\\n" is one end, as "\\n" is.

    Raises:
        UserError: as `raw_lines`, or a line is not UTF-8.
    """
    for number, raw in raw_lines(path):
        yield number, decoded(raw, f"{path}:{number}").removesuffix("\n").removesuffix("\r")


def decoded(raw: bytes, where: str) -> str:
    """The text of bytes; `where` they are, for the message.

    Raises:
        UserError: they are not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise UserError(
            f"{where}: not UTF-8 (byte 0x{byte:02x} at {error.start}: {error.reason}); save the "
            "file as UTF-8"
        ) from error
