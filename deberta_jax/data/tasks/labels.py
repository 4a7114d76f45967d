"""The labels of a task, and the texts of its columns: checked, never guessed."""

import dataclasses
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from deberta_jax.data import names as syntax
from deberta_jax.data.tasks.config import TaskConfig
from deberta_jax.data.tasks.sources import Row
from deberta_jax.errors import UserError

MISSING = ""
# How programs write a value that is not there.
_MISSING_BY_PROGRAMS = {"nan", "NaN", "NAN", "<NA>", "#N/A", "null", "NULL", "None"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_STRIPPED = "labels with blanks around them, read without"


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels in the order of the model's outputs.

    Attributes:
        names: as they are shown; of several spellings the first.
        indices: the index of every spelling.
        stated: what `task.labels` has to be for the same labels without the examples: a name that
            holds "|" is escaped.
    """

    names: tuple[str, ...]
    indices: dict[str, int]
    stated: tuple[str, ...]

    @classmethod
    def of(cls, config: TaskConfig, found: Iterable[tuple[str, str]]) -> "Labels":
        """The labels that `config` lists, else those of the training examples.

        Args:
            config: the task. A label of `task.labels` that the examples have as it stands is one
                label; else "a|b" is one with two spellings.
            found: (label as `label_text` gives it, file and line) of the training examples.

        Raises:
            UserError: there are fewer than two, two are hardly told apart, or one is listed twice.
        """
        first: dict[str, str] = {}
        for name, where in found:
            first.setdefault(name, where)
        for name in config.skip_labels:
            first.pop(name, None)
        if config.labels:
            spellings = [_spellings(name.strip(), first) for name in config.labels]
        else:
            _check_found(first, config.label)
            spellings = [[name] for name in ordered(first)]
        if len(spellings) < 2:
            raise UserError(
                f"task.label={config.label!r} has {len(spellings)} label(s): "
                f"{', '.join(names[0] for names in spellings)}; "
                "a task has at least two (task.labels lists them, task.train holds them)"
            )
        indices: dict[str, int] = {}
        for index, names in enumerate(spellings):
            for name in names:
                if name == MISSING or indices.setdefault(name, index) != index:
                    fault = "is empty" if name == MISSING else "is listed twice"
                    raise UserError(
                        rf"task.labels: the label {name!r} {fault}; \| is a bar that parts nothing"
                    )
        stated = tuple("|".join(map(syntax.escaped, names)) for names in spellings)
        return cls(tuple(names[0] for names in spellings), indices, stated)

    def index_of(self, name: str, where: str) -> int:
        """The index of the label spelled `name`; `where` it was read, for the message.

        Raises:
            UserError: it is none of the labels.
        """
        if name not in self.indices:
            raise UserError(
                f"{where}: {name!r} is none of the labels learned: {', '.join(self.names)}"
            )
        return self.indices[name]


def _spellings(stated: str, found: dict[str, str]) -> list[str]:
    return [stated] if stated in found else syntax.alternatives(stated)


def ordered(names: Iterable[str]) -> list[str]:
    """Labels in order: numbers by their value where all are numbers, else by their letters."""
    names = list(names)
    numeric = all(_NUMBER.fullmatch(name) for name in names)
    return sorted(names, key=lambda name: (float(name), name)) if numeric else sorted(names)


def label_text(value: object, where: str, column: str, counts: Counter[str] | None = None) -> str:
    """A label as files spell it; `MISSING` for null, NaN and an empty cell.

    JSON's true and 1 are "true" and "1", and so is 1.0, which pandas makes of 1 beside a null.

    Args:
        value: what the column holds.
        where: file and line.
        column: its name.
        counts: takes how often there were blanks around a label.

    Raises:
        UserError: it is a list or an object.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, list | tuple | dict):
        what = "an object" if isinstance(value, dict) else "a list"
        raise UserError(
            f"{where}: {column} is {what}, {value!r:.60}; it has to be one label "
            '(several labels of one example: objective="multi_label")'
        )
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    if text != text.strip() and text.strip() and counts is not None:
        counts[_STRIPPED] += 1
    return text.strip()


def present(name: str, where: str, column: str) -> str:
    """The label, if there is one.

    Raises:
        UserError: it is missing.
    """
    if name == MISSING:
        raise UserError(
            f"{where}: {column} has no label; every example needs one, or "
            "task.skip_labels=('',) leaves such examples out"
        )
    return name


def without_skipped(rows: list[Row], config: TaskConfig, counts: Counter[str]) -> list[Row]:
    """The rows whose label is none of `task.skip_labels`; the others are counted.

    Raises:
        UserError: the column is missing.
    """
    if not config.skip_labels:
        return rows
    kept = []
    for row in rows:
        value = row[config.label]
        # A list is a set of labels, or a mistake that the task says.
        name = None if isinstance(value, list | dict) else label_text(value, "", config.label)
        if name in config.skip_labels:
            shown = repr(name) if name else "missing"
            counts[f"examples whose label is {shown}, left out"] += 1
        else:
            kept.append(row)
    return kept


def refuse_skipping(config: TaskConfig) -> None:
    """Raises `UserError` where `task.skip_labels` is set for a task that cannot skip."""
    if config.skip_labels:
        raise UserError(
            f"task.skip_labels is {config.skip_labels}; only examples with a class, a number, a "
            "choice or a set of labels are skipped by it"
        )


def _check_found(first: dict[str, str], column: str) -> None:
    """Raises `UserError` where labels of the examples look like mistakes."""
    alike: dict[object, str] = {}
    for name, where in first.items():
        present(name, where, column)
        if name in _MISSING_BY_PROGRAMS:
            raise UserError(
                f"{where}: {column} is {name!r}, as programs write a missing value; task.labels "
                "lists it if it is a label, task.skip_labels leaves it out"
            )
        key = (
            float(name)
            if _NUMBER.fullmatch(name)
            else " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        )
        other = alike.setdefault(key, name)
        if other != name:
            raise UserError(
                f"{where}: the label {name!r} differs from {other!r} ({first[other]}) in its "
                "spelling alone; task.labels says whether they are two labels ('a', 'b') or one "
                "('a|b')"
            )


def number_of(row: Row, column: str) -> float:
    """The number in a column.

    Raises:
        UserError: there is none.
    """
    value = row[column]
    if isinstance(value, str):
        text = value.strip()
        number = float(text) if _NUMBER.fullmatch(text) else math.nan
    else:
        known = isinstance(value, int | float) and not isinstance(value, bool)
        number = float(value) if known else math.nan
    if not math.isfinite(number):
        raise UserError(f"{row.where}: {column} is {value!r}, not a number")
    return number


def text_of(row: Row, columns: str) -> str:
    """The text of a column, or of several ("a+b") joined by a space.

    Raises:
        UserError: a column is missing, or holds no text.
    """
    joined = [columns] if columns in row.values else syntax.parts(columns, "+")
    texts = [row[column] for column in joined]
    for column, text in zip(joined, texts, strict=True):
        if not isinstance(text, str):
            raise UserError(f"{row.where}: {column} holds {text!r:.40}, not a text")
    return " ".join(texts)
