"""Columns of words, a word a line, a blank line after each sentence: CoNLL's files."""

import itertools
import re
from collections.abc import Iterator, Sequence

from deberta_jax.data.formats.lines import text_lines
from deberta_jax.errors import UserError

_DOCUMENT = "-DOCSTART-"
_BLANK_RUN = re.compile(r"[ ]+")


def sentences(path: str, header: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, list[str]]]]:
    """(line of its first word, {column: its words' cells}) of every sentence.

    Cells part at tabs where the file has any (a word may hold blanks then), else at runs of ASCII
    blanks; a no-break space is a character of its word. A line that begins with
    -DOCSTART- ends a sentence, as a blank one does.

    Args:
        path: the file.
        header: names of all columns. Empty: the first is "tokens", the last one "tags".

    Raises:
        UserError: a line has another number of columns than the first, or no tag, or a word is
            empty, or some lines have tabs and others none; with file and line.
    """
    lines = [(n, "" if _is_document(line) else line) for n, line in text_lines(path)]
    tabs = any("\t" in line for _, line in lines)
    width = len(header)
    for blank, group in itertools.groupby(lines, lambda line: not line[1].strip(" ")):
        if blank:
            continue
        rows = []
        for number, line in group:
            cells = _cells(line, tabs, f"{path}:{number}")
            width = width or len(cells)
            _check(cells, width, tabs, f"{path}:{number}", header)
            rows.append((number, cells))
        columns = list(zip(*(cells for _, cells in rows), strict=True))
        named = dict(zip(header, columns, strict=True)) if header else _ends(columns)
        yield rows[0][0], {name: list(column) for name, column in named.items()}


def _ends(columns: list[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {"tokens": columns[0], "tags": columns[-1]}


def _is_document(line: str) -> bool:
    return line.startswith(_DOCUMENT) and line[len(_DOCUMENT) :][:1] in ("", " ", "\t")


def _cells(line: str, tabs: bool, where: str) -> list[str]:
    if not tabs:
        return _BLANK_RUN.split(line.strip(" "))
    if "\t" not in line:
        raise UserError(
            f"{where}: no tab, while other lines of the file have tabs; columns part at tabs, or "
            "all at blanks"
        )
    return line.split("\t")


def _check(cells: list[str], width: int, tabs: bool, where: str, header: Sequence[str]) -> None:
    if len(cells) < 2 and not header:
        raise UserError(f"{where}: it has to hold a word and its tag")
    if len(cells) != width:
        mark = "tabs" if tabs else "blanks"
        expected = f"task.header names {width}" if header else f"the first line has {width}"
        raise UserError(f"{where}: {len(cells)} columns, parted at {mark}; {expected}")
    if not cells[0]:
        raise UserError(f"{where}: the word is empty")
