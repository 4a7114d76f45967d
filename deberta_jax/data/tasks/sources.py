"""Where a task's examples are: files and TFDS data sets, to rows of named values."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from deberta_jax import storage
from deberta_jax.data import names as syntax
from deberta_jax.data.compressed import COMPRESSED
from deberta_jax.data.formats import conll, json_text, paths, tables
from deberta_jax.data.formats.lines import ending
from deberta_jax.data.tasks import published, tfds_source
from deberta_jax.errors import UserError

_NO_NAMES = " (task.header names the columns of a file that has no line of names)"


@dataclasses.dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        where: the file and line, or the data set and index, for messages.
        values: what it holds, by column.
        hint: what the message of a missing column ends with.
    """

    where: str
    values: dict[str, Any]
    hint: str = ""

    def _column(self, names: str) -> str | None:
        """The column that is called so; else the first of "a|b" that there is."""
        among = [names, *syntax.alternatives(names)]
        return next((name for name in among if name in self.values), None)

    def get(self, names: str, default: Any = None) -> Any:
        """The value of the column that `names` ("a|b": a or b) names; `default` without one."""
        column = self._column(names)
        return default if column is None else self.values[column]

    def __getitem__(self, names: str) -> Any:
        """As `get`.

        Raises:
            UserError: there is no such column; the message names those that there are.
        """
        column = self._column(names)
        if column is None:
            there = ", ".join(f"{name:.60}" for name in self.values)
            raise UserError(f"{self.where}: no column {names!r}; there are: {there}{self.hint}")
        return self.values[column]


class Reading(NamedTuple):
    """How a file is read: `task.header`, `task.uneven_rows`, and what takes the counts."""

    header: Sequence[str]
    uneven_rows: str
    counts: Counter[str]


def read_rows(
    source: str,
    header: Sequence[str] = (),
    *,
    file_format: str = "",
    uneven_rows: str = "refuse",
    counts: Counter[str] | None = None,
) -> list[Row]:
    """The examples of a source, in order.

    Args:
        source: a file, a glob, or "tfds:NAME:SPLIT" (see `TaskConfig`).
        header: `task.header`.
        file_format: `task.format`.
        uneven_rows: `task.uneven_rows`.
        counts: takes what was passed over, by reason.

    Raises:
        UserError: it is missing, unreadable or malformed, or holds no example.
    """
    if file_format and file_format not in _READERS:
        raise UserError(f"task.format is {file_format!r}; it may be {', '.join(_READERS)}")
    if uneven_rows not in tables.UNEVEN:
        known = ", ".join(tables.UNEVEN)
        raise UserError(f"task.uneven_rows is {uneven_rows!r}; it may be {known}")
    reading = Reading(header, uneven_rows, Counter() if counts is None else counts)
    if source.startswith(tfds_source.PREFIX):
        pairs = tfds_source.read(source)
        rows = [Row(where, v) for where, values in pairs for where, v in _each(where, values)]
    else:
        rows = [
            row
            for path in paths.matches(source, source)
            for row in _file(path, file_format, reading)
        ]
    if not rows:
        raise UserError(f"{source} holds no examples")
    return rows


def named_sources(sources: Sequence[str], field: str) -> list[tuple[str, str]]:
    """(name of the set, source) of each of "NAME=SOURCE"; a single one needs no name.

    A file that is called "a=b" is that file. Names hold no "/".

    Raises:
        UserError: several sources, and one has no name of its own.
    """
    pairs = [_named(source) for source in sources]
    names = [name for name, _ in pairs]
    if len(pairs) > 1 and (len(set(names)) < len(names) or "" in names):
        raise UserError(f'{field} has {len(pairs)} sources; each needs a name of its own: "NAME=…"')
    return pairs


def _named(source: str) -> tuple[str, str]:
    name, equals, rest = source.partition("=")
    is_source = source.startswith(tfds_source.PREFIX) or _is_there(source)
    if is_source or not equals or "/" in name or not name.strip():
        return "", source
    if not rest.startswith(tfds_source.PREFIX) and not _is_there(rest):
        raise UserError(f"{source} does not exist, nor does {rest}, of a set that is named {name}")
    return name, rest


def _is_there(path: str) -> bool:
    return storage.exists(path) or bool(storage.files(path))


def _file(path: str, file_format: str, reading: Reading) -> Iterator[Row]:
    if not file_format and ending(path) == ".tsv" and published.mctest_answers(path):
        yield from (Row(where, values) for where, values in published.mctest(path))
        return
    kind = file_format or ending(path).removeprefix(".")
    if kind not in _READERS or (kind == "quoted_tsv" and not file_format):
        raise UserError(
            f"{path}: unknown ending; examples are read from {', '.join(_ENDINGS)}, plain or "
            f"compressed ({', '.join(COMPRESSED)}), or from {tfds_source.PREFIX}NAME:SPLIT; "
            "task.format says the format of files that end otherwise"
        )
    hint = _NO_NAMES if kind in _TABLES and not reading.header else ""
    for where, values in _READERS[kind](path, reading):
        yield from (Row(part, each, hint) for part, each in _each(where, values))


def _each(where: str, values: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """(where, values) of each question of a passage of RACE's form; of any other row, of itself."""
    return published.questions(where, values) if published.is_passage(values) else [(where, values)]


def _table(layout: tables.Layout) -> Callable:
    def read(path: str, reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
        rows = tables.table(path, layout, reading.header, reading.uneven_rows, reading.counts)
        for line, values in rows:
            yield f"{path}:{line}", dict(values)

    return read


def _json_lines(path: str, reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    del reading
    for line, values in json_text.json_lines(path):
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise UserError(
                f"{path}:{line}: every line has to hold one JSON object, not a {kind}; a list of "
                'objects is read from a file that ends in .json, or by task.format="json"'
            )
        yield f"{path}:{line}", values


def _json(path: str, reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    document = json_text.document(json_text.whole_text(path), path)
    if document is json_text.LINES:
        return _json_lines(path, reading)
    return published.json_rows(document, path)


def _conll(path: str, reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    for line, values in conll.sentences(path, reading.header):
        yield f"{path}:{line}", dict(values)


_TABLES = {layout.name: _table(layout) for layout in (tables.TSV, tables.CSV, tables.QUOTED_TSV)}
_READERS: dict[str, Callable] = {
    **_TABLES,
    "jsonl": _json_lines,
    "json": _json,
    "conll": _conll,
}
_ENDINGS = [f".{name}" for name in _READERS if name != "quoted_tsv"]
