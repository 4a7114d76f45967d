"""Examples as they lie on disk, or in TFDS, to rows of named values."""

import csv
import dataclasses
import io
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from deberta_jax.data.compressed import reading
from deberta_jax.errors import UserError

_TFDS = "tfds:"
_NEED_TENSORFLOW = {"glue": "Glue", "super_glue": "SuperGlue"}
_COMPRESSED = (".gz", ".xz", ".bz2")
# A column of CoNLL's files is a word's; the last one is its tag.
_CONLL_DOCUMENT = "-DOCSTART-"


@dataclasses.dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        where: the file and line, or the data set and index, for messages.
        values: what it holds, by column.
    """

    where: str
    values: dict[str, Any]

    def get(self, names: str, default: Any = None) -> Any:
        """The value of the column that `names` ("a|b": a or b) names; `default` without one."""
        present = [name for name in names.split("|") if name in self.values]
        return self.values[present[0]] if present else default

    def __getitem__(self, names: str) -> Any:
        """As `get`.

        Raises:
            UserError: there is no such column; the message names those that there are.
        """
        if not any(name in self.values for name in names.split("|")):
            raise UserError(
                f"{self.where}: no column {names!r}; there are: {', '.join(self.values)}"
            )
        return self.get(names)


def read_rows(source: str, header: tuple[str, ...] = ()) -> list[Row]:
    """The examples of a source (see `TaskConfig`), in order.

    Args:
        source: a file, or "tfds:NAME:SPLIT".
        header: names of the columns of a .tsv or .csv file without a line of names.

    Raises:
        UserError: it is missing, unreadable or malformed, or holds no example.
    """
    if source.startswith(_TFDS):
        rows = list(_tfds_rows(source))
    else:
        path = os.path.expanduser(source)
        stem, ending = os.path.splitext(path)
        kind = os.path.splitext(stem)[1] if ending in _COMPRESSED else ending
        if kind not in _READERS:
            raise UserError(
                f"{source}: unknown ending; examples are read from {', '.join(_READERS)}, plain "
                f"or compressed, or from {_TFDS}NAME:SPLIT"
            )
        if not os.path.isfile(path):
            raise UserError(f"{source} does not exist (seen from {os.getcwd()})")
        rows = list(_READERS[kind](path, header))
    if not rows:
        raise UserError(f"{source} holds no examples")
    return rows


def _text(path: str) -> str:
    with reading(path) as stream:
        raw = stream.read()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}") from error


def _table(path: str, header: tuple[str, ...], **dialect: Any) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True, **dialect)
    try:
        names = list(header) or next(lines, [])
        for cells in lines:
            if not cells:
                continue
            where = f"{path}:{lines.line_num}"
            if len(cells) != len(names):
                raise UserError(
                    f"{where}: {len(cells)} columns; there have to be {len(names)}: "
                    f"{', '.join(names)}"
                )
            yield Row(where, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}:{lines.line_num}: {error}") from error


def _tsv_rows(path: str, header: tuple[str, ...]) -> Iterator[Row]:
    answers = os.path.splitext(path)[0] + ".ans"
    if os.path.isfile(answers):
        return _mctest_rows(path, answers)
    return _table(path, header, delimiter="\t", quoting=csv.QUOTE_NONE)


def _csv_rows(path: str, header: tuple[str, ...]) -> Iterator[Row]:
    return _table(path, header)


def _json_lines(path: str, header: tuple[str, ...]) -> Iterator[Row]:
    del header
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            where = f"{path}:{number}"
            values = _json(line, where)
            if not isinstance(values, dict):
                raise UserError(f"{where}: every line has to hold one JSON object")
            yield from _with_its_questions(Row(where, values))


def _squad_rows(path: str, header: tuple[str, ...]) -> Iterator[Row]:
    """SQuAD's file: a row a question, with its context and its answers."""
    del header
    try:
        for article in _json(_text(path), path)["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    values = {"context": paragraph["context"], **question}
                    yield Row(f"{path}, question {question['id']}", values)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of SQuAD's form: {error!r}") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from error


def _conll_rows(path: str, header: tuple[str, ...]) -> Iterator[Row]:
    """CoNLL's file: a word a line, its tag last; a blank line ends a sentence."""
    del header
    lines = enumerate(_text(path).splitlines(), start=1)
    for blank, group in itertools.groupby(lines, lambda line: not line[1].strip()):
        words = [(number, line.split()) for number, line in group]
        if blank or words[0][1][0] == _CONLL_DOCUMENT:
            continue
        for number, cells in words:
            if len(cells) < 2:
                raise UserError(f"{path}:{number}: it has to hold a word and its tag")
        values = {"tokens": [w[0] for _, w in words], "tags": [w[-1] for _, w in words]}
        yield Row(f"{path}:{words[0][0]}", values)


def _mctest_rows(path: str, answers_path: str) -> Iterator[Row]:
    """MCTest's files: a story and four questions a line, each with four choices."""
    answers = [line.split("\t") for line in _text(answers_path).splitlines()]
    stories = [line.split("\t") for line in _text(path).splitlines()]
    if len(answers) != len(stories):
        raise UserError(f"{answers_path} has {len(answers)} lines, {path} {len(stories)}")
    for number, (cells, right) in enumerate(zip(stories, answers, strict=True), start=1):
        where = f"{path}:{number}"
        if len(cells) != 23 or len(right) != 4:
            raise UserError(f"{where}: not a story of MCTest with four questions of four choices")
        context = cells[2].replace("\\newline", "\n").replace("\\tab", "\t")
        for index in range(4):
            question, *choices = cells[3 + 5 * index : 8 + 5 * index]
            values = {
                "id": f"{cells[0]}.{index}",
                "context": context,
                "question": question.removeprefix("one: ").removeprefix("multiple: "),
                "choices": choices,
                "label": right[index],
            }
            yield Row(f"{where}, question {index + 1}", values)


def _with_its_questions(row: Row) -> Iterator[Row]:
    """A row for each question of a passage of RACE's form; any other row as it is."""
    listed = [row.values.get(name) for name in ("questions", "options", "answers")]
    if not all(isinstance(values, list) for values in listed):
        yield row
        return
    for index, (question, choices, answer) in enumerate(zip(*listed, strict=False)):
        rest = {k: v for k, v in row.values.items() if k not in ("questions", "options", "answers")}
        values = {**rest, "question": question, "choices": choices, "label": answer}
        yield Row(f"{row.where}, question {index + 1}", values)


def _tfds_rows(source: str) -> Iterator[Row]:
    import tensorflow_datasets as tfds

    name, _, split = source.removeprefix(_TFDS).rpartition(":")
    if not name:
        raise UserError(f"{source}: it has to be {_TFDS}NAME:SPLIT, such as tfds:glue/sst2:train")
    try:
        builder = _tfds_builder(tfds, name)
        builder.download_and_prepare(file_format="array_record")
        data = builder.as_data_source(split=split)
    except Exception as error:  # TFDS raises many kinds, and what it downloads with more
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{source} cannot be had ({reason}); or name local files") from error
    for index, record in enumerate(data):
        values = {k: _plain(v, builder.info.features[k]) for k, v in record.items()}
        yield from _with_its_questions(Row(f"{source}[{index}]", values))


def _tfds_builder(tfds: Any, name: str) -> Any:
    """A data set's builder; TFDS finds these families by name only where TensorFlow is there."""
    family, _, config = name.partition("/")
    if family in _NEED_TENSORFLOW:
        return getattr(tfds.text, _NEED_TENSORFLOW[family])(config=config)
    return tfds.builder(name)


def _plain(value, feature):
    """A value of TFDS as a file would hold it: text, not bytes; a class's name, not its number."""
    if isinstance(value, dict):
        return {name: _plain(item, _field(feature, name)) for name, item in value.items()}
    if isinstance(value, bytes):
        return value.decode()
    if np.ndim(value) or isinstance(value, list | tuple):
        return [_plain(item, getattr(feature, "feature", feature)) for item in value]
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value)) if value >= 0 else None
    return value.item() if hasattr(value, "item") else value


def _field(feature, name):
    try:
        return feature[name]
    except (KeyError, TypeError):
        return None


_READERS = {
    ".tsv": _tsv_rows,
    ".csv": _csv_rows,
    ".jsonl": _json_lines,
    ".json": _squad_rows,
    ".conll": _conll_rows,
}
