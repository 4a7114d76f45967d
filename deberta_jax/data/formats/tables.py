"""Tables: .csv with quotes, .tsv without them, and tabs with quotes as pandas writes them."""

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from deberta_jax.data.formats.lines import decoded, raw_lines, text_lines
from deberta_jax.errors import UserError

# What is done with a row that has more or fewer cells than there are names.
UNEVEN = ("refuse", "skip", "keep")


class Layout(NamedTuple):
    """How a table is written: the mark between cells, and whether quotes are syntax."""

    name: str
    mark: str
    quotes: bool


CSV = Layout("csv", ",", True)
TSV = Layout("tsv", "\t", False)
QUOTED_TSV = Layout("quoted_tsv", "\t", True)
_MARKS = {",": "commas", "\t": "tabs", ";": "semicolons"}


def table(
    path: str,
    layout: Layout,
    header: Sequence[str] = (),
    uneven: str = "refuse",
    counts: Counter[str] | None = None,
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, cells by the name of their column) of every row of a table.

    Args:
        path: the file.
        layout: how it is written.
        header: the columns' names where the file has no line of names. A first line that holds one
            of them is a line of names all the same, and goes before them.
        uneven: what is done with a row of another number of cells: "refuse" it, "skip" it, or
            "keep" the cells that have names. Skipped and kept ones are counted.
        counts: takes what was passed over, by reason.

    Raises:
        UserError: a row is malformed or uneven, or two columns have one name; with file and line.
    """
    counts = Counter() if counts is None else counts
    rows = _cells(path, layout, counts)
    first = next(rows, None)
    if first is None:
        return
    names = list(header)
    if len(set(filter(None, names))) < len(list(filter(None, names))):
        raise UserError(f"task.header has a name twice: {', '.join(names)}")
    if not header or _names_some(first[1], header):
        names = first[1]
        _check_names(names, f"{path}:{first[0]}", layout)
    else:
        rows = itertools.chain([first], rows)
    for line, cells in rows:
        if len(cells) != len(names):
            _meet_uneven(cells, names, f"{path}:{line}", layout, uneven, counts)
            if uneven == "skip":
                continue
        if not layout.quotes:
            counts[
                'cells that look quoted, read as they stand (task.format="quoted_tsv" reads quotes)'
            ] += sum(map(_looks_quoted, cells))
        yield line, {name: cell for name, cell in zip(names, cells, strict=False) if name}


def _cells(path: str, layout: Layout, counts: Counter[str]) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row; blank lines are counted and passed over."""
    for line, cells in _quoted(path, layout) if layout.quotes else _plain(path, layout):
        if cells:
            yield line, cells
        else:
            counts["blank lines, passed over"] += 1


def _plain(path: str, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    for number, line in text_lines(path):
        if number == 1 and "\r" in line:
            raise UserError(
                f"{path}:1: lines end at a carriage return alone; they end at a newline"
            )
        yield number, line.split(layout.mark) if line else []


def _quoted(path: str, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(1 << 30)
    lines = (decoded(raw, f"{path}:{number}") for number, raw in raw_lines(path))
    reader = csv.reader(lines, strict=True, delimiter=layout.mark)
    start = 1
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        reason = str(error).partition(" - ")[0]
        if "new-line character" in reason:
            reason = "a carriage return outside of quotes; lines end at a newline"
        raise UserError(f"{path}:{start}: {reason}") from error


def _looks_quoted(cell: str) -> bool:
    """Whether a writer that quotes wrote it: quotes around it, and doubled ones inside."""
    if len(cell) < 2 or not cell[0] == cell[-1] == '"':
        return False
    inner = cell[1:-1]
    return '"' not in inner.replace('""', "") and ('""' in inner or "\r" in inner)


def _names_some(cells: list[str], header: Sequence[str]) -> bool:
    """Whether a first line is one of names: it holds a name of `header`, in any case."""
    stated = {name.strip().casefold() for name in header}
    return bool({cell.strip().casefold() for cell in cells if cell.strip()} & stated)


def _check_names(names: list[str], where: str, layout: Layout) -> None:
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: two columns have the name {twice!r}; rename or remove one")
    quoted = all(re.fullmatch('".+"', name) for name in names)
    opened = any(name.startswith('"') and name.count('"') % 2 for name in names)
    if not layout.quotes and (quoted or opened):
        raise UserError(
            f"{where}: the names stand in quotes, which .tsv files do not have; "
            'task.format="quoted_tsv" reads them'
        )
    other = _other_mark(names, layout)
    # Only a tab is in no name of a column that a person wrote.
    if other and (len(names) == 1 or other == "\t"):
        shown = f"{names[0]!r:.60}"
        raise UserError(f"{where}: the first name is {shown}; {_advice(other, layout)}")


def _meet_uneven(
    cells: list[str],
    names: list[str],
    where: str,
    layout: Layout,
    uneven: str,
    counts: Counter[str],
) -> None:
    if uneven == "refuse":
        mark = _other_mark(cells, layout)
        quote = not layout.quotes and any(cell.startswith('"') for cell in cells)
        advice = (
            _advice(mark, layout)
            if mark
            else 'a cell begins with a quote: task.format="quoted_tsv" reads quotes'
            if quote
            else 'task.uneven_rows="skip" leaves such rows out, "keep" reads the named cells'
        )
        shown = ", ".join(name[:30] for name in names)
        raise UserError(
            f"{where}: {len(cells)} columns; there have to be {len(names)}: {shown} ({advice})"
        )
    what = {"skip": "left out", "keep": "only the named cells read"}[uneven]
    counts[f"rows with another number of cells, {what}"] += 1


def _other_mark(cells: list[str], layout: Layout) -> str | None:
    """The mark that parts a line better than the layout's: it is there as often as cells are."""
    counts = {mark: sum(cell.count(mark) for cell in cells) for mark in _MARKS}
    return next((m for m, n in counts.items() if m != layout.mark and n >= len(cells)), None)


def _advice(mark: str, layout: Layout) -> str:
    """What to do about a file whose cells part at another mark."""
    says = f"its cells seem to part at {_MARKS[mark]}, those of {layout.name} at "
    says += _MARKS[layout.mark]
    formats = {"\t": '; task.format="tsv" reads it', ",": '; task.format="csv" reads it'}
    return says + formats.get(mark, "; write it with commas or tabs")
