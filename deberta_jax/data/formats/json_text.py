"""JSON as users have it: an object a line, or a document; what it holds is checked, not mended."""

import json
import re
from collections.abc import Iterator
from typing import Any

from deberta_jax.data.formats.lines import BLANKS, decoded, raw_lines
from deberta_jax.errors import UserError

# An escape of half a character outside the Basic Multilingual Plane: "\ud83d" without "\ude00".
_HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
# A file that is no document, but several.
LINES = object()
# What some programs take for the end of a line; JSON may write it either way.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
HALF = re.compile("[\ud800-\udfff]")


def json_line(value: Any) -> str:
    """A value as one line of JSON, with its end; no program sees another line's end in it."""
    return json.dumps(value, ensure_ascii=False).translate(_LINE_ENDS) + "\n"


def json_lines(path: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of every line that holds one; blank lines are passed over.

    Raises:
        UserError: a line is not UTF-8, or as `parse`; with file and line.
    """
    for number, raw in raw_lines(path):
        where = f"{path}:{number}"
        line = decoded(raw, where)
        if line.strip(BLANKS):
            yield number, parse(line, where, hint="; every line holds one object")


def document(text: str, path: str, *, halves: bool = False) -> Any:
    """What the text of a whole file means; `LINES` where it holds a value a line.

    Raises:
        UserError: as `parse`.
    """
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return LINES
    except (ValueError, RecursionError):
        pass  # `parse` says it
    return parse(text, path, halves=halves)


def whole_text(path: str) -> str:
    """The text of a file.

    Raises:
        UserError: it cannot be read, or is not UTF-8; with file and line.
    """
    return "".join(decoded(raw, f"{path}:{number}") for number, raw in raw_lines(path))


def is_object(text: str) -> bool:
    """Whether the text is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def listed(value: Any) -> list[Any] | None:
    """The records of a document: a list, or the list below "data"; None where there is none."""
    value = value.get("data") if isinstance(value, dict) else value
    return value if isinstance(value, list) else None


def parse(text: str, where: str, *, halves: bool = False, hint: str = "") -> Any:
    """What JSON text means.

    Args:
        text: the JSON.
        where: it is from, for messages.
        halves: whether halves of characters ("\\ud83d" alone) may be in its strings.
        hint: what the message of a syntax error ends with.

    Raises:
        UserError: it is no JSON, an object has a name twice, or half a character is in it: no
            UTF-8 file can hold that, and no tokenizer read it.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}){hint}") from error
    if not halves and _HALF_ESCAPE.search(text):
        _refuse_halves(value, where)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} is there twice")
    return values


def _refuse_halves(value: Any, where: str, name: str = "") -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_halves(key, where, key)
            _refuse_halves(item, where, key)
    elif isinstance(value, list):
        for item in value:
            _refuse_halves(item, where, name)
    elif isinstance(value, str) and (half := HALF.search(value)):
        raise UserError(
            f"{where}: {name!a} holds half a character (\\u{ord(half[0]):04x}), as of an emoji "
            "that was cut; mend or leave out the text"
        )
