"""Every row of the table in docs/data_formats.md: what is read, counted, refused."""

import contextlib
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deberta_jax.data.tasks import TASKS
from deberta_jax.data.tasks.config import TaskConfig
from deberta_jax.data.tasks.sources import Row, named_sources, read_rows
from deberta_jax.data.tasks.tfds_source import _plain
from deberta_jax.errors import UserError
from deberta_jax.evaluation.sentence_files import read_items
from deberta_jax.preparation.corpora import CorpusReport, documents

PAGE = Path(__file__).parents[3] / "docs" / "data_formats.md"
READ, COUNTED, REFUSED = "read", "counted", "refused"


class Outcome(NamedTuple):
    """What became of a file: the values of its examples, and what was counted on the way."""

    values: Any
    counts: dict[str, int]


class Case(NamedTuple):
    """`run(directory, tokenizer)` gives an `Outcome` or raises; `want` is what it has to hold:
    its values, a text of its counts, or the message's regular expression."""

    run: Callable[..., Outcome]
    want: Any


def put(directory: Path, name: str, content: str | bytes) -> str:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def rows(name, content, want, key="text", source="", **options):
    """A file whose rows are read; `want` are the values of the column `key`, or of `None` all."""

    def run(directory, tokenizer):
        path, counts = put(directory, name, content), Counter()
        path = str(directory / source) if source else path
        found = read_rows(path, options.get("header", ()), counts=counts, **named)
        return Outcome([row.values if key is None else row[key] for row in found], counts)

    named = {name: value for name, value in options.items() if name != "header"}
    return Case(run, want)


def task(kind, values, want, key="label", training=True, learned=None, **options):
    """Rows of those values as a task encodes them; `want` are its examples' labels."""

    def run(directory, tokenizer):
        given = [Row(f"a.csv:{n}", dict(v)) for n, v in enumerate(values, 1)]
        config = TaskConfig(**options)
        first = [Row("t.csv:1", dict(v)) for v in learned] if learned else given
        made = TASKS[kind](config, tokenizer, first)
        encoded = made.encode(given, training)
        if key == "names":
            return Outcome(list(made.label_names), encoded.counts)
        return Outcome([example[key] for example in encoded.examples], encoded.counts)

    return Case(run, want)


def labels(*found, want, **options):
    values = [{"text": f"word {n}", "label": label} for n, label in enumerate(found)]
    return task("classification", values, want, **options)


def sets(*values, want, **options):
    return task("multi_label", [{"text": "w"} | v for v in values], want, **options)


def prepared(name, content, want, field="text"):
    def run(directory, tokenizer):
        report = CorpusReport()
        found = documents(put(directory, name, content), field, 1, report)
        texts = ["".join(document.pieces) for document in found]
        counts = {"empty": report.empty_documents} | report.halves | report.undecodable_bytes
        return Outcome(texts, counts)

    return Case(run, want)


def scored(name, content, want):
    def run(directory, tokenizer):
        items = read_items(put(directory, name, content), "text")
        return Outcome([item.sentences for item in items], {})

    return Case(run, want)


def every_reader(content, want):
    """A file that every verb's reader refuses alike."""

    def run(directory, tokenizer):
        read = [
            lambda path: read_rows(path.replace("txt", "csv")),
            lambda path: read_items(path, "text"),
        ]
        for reader in read:
            for ending in ("txt", "csv"):
                put(directory, f"a.{ending}", content)
            with contextlib.suppress(UserError):
                reader(str(directory / "a.txt"))
                raise AssertionError("one reader took it")
        return rows("a.csv", content, None).run(directory, tokenizer)

    return Case(run, want)


def path_case(*names, ask, want, named=False):
    def run(directory, tokenizer):
        for name in names:
            put(directory, name, json.dumps({"text": name}) + "\n")
        with contextlib.chdir(directory):
            source = named_sources((ask,), "task.validation")[0][1] if named else ask
            return Outcome([row["text"] for row in read_rows(source)], {})

    return Case(run, want)


def hostile(directory, tokenizer):
    text = "a\u2028b\u2029c\x85d\x0ce"
    line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
    found = [
        read_rows(put(directory, "a.jsonl", line))[0]["text"],
        read_rows(put(directory, "a.json", f"[{line}]"))[0]["text"],
        read_rows(put(directory, "a.csv", f"text\n{text}\n"))[0]["text"],
        read_rows(put(directory, "a.tsv", f"text\n{text}\n"))[0]["text"],
        read_rows(put(directory, "a.conll", f"{text} O\n"))[0]["tokens"][0],
        read_items(put(directory, "a.txt", f"{text}\n"), "text")[0].sentences[0],
        "".join(next(documents(put(directory, "b.txt", text), "text", 1, CorpusReport())).pieces),
    ]
    return Outcome([each == text for each in found], {})


def no_class(directory, tokenizer):
    import tensorflow_datasets as tfds

    feature = tfds.features.ClassLabel(names=["a", "b"])
    values = [{"text": "x", "label": _plain(label, feature)} for label in (0, 1, -1)]
    return task("classification", values, None).run(directory, tokenizer)


PASSAGE = {
    "article": "a",
    "questions": ["q", "r"],
    "options": [["w", "x"], ["y", "z"]],
    "answers": ["A", "B"],
}
ASKED = {"id": "q1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}
SQUAD = {"data": [{"title": "t", "paragraphs": [{"context": "Ann", "qas": [ASKED]}]}]}
STORY = "\t".join(["id", "x", "story", *["one: q", "a", "b", "c", "d"] * 4]) + "\n"
TWO = '{"text": "a"}\n{"text": "b"}\n'
CHOICE = {"text": "q", "choices": ["a", "b"], "label": 0}
SPAN = dict(texts=("question", "context"), label="answers", max_length=400)
TAGS = dict(texts=("tokens",), label="tags")
BAD = b"text\nna\xefve\n"

CASES = {
    ("every file", "an ending in upper case, compressed"): rows(
        "A.CSV.GZ", gzip.compress(b"text\na\n"), ["a"]
    ),
    ("every file", "a byte order mark at its beginning"): rows("a.csv", "\ufefftext\na\n", ["a"]),
    ("every file", r"`\r\n` at the end of a line"): rows(
        "a.tsv", "text\tb\r\na\tc\r\n", ["c"], "b"
    ),
    ("every file", "U+2028, U+2029, U+0085, a form feed in a text"): Case(hostile, [True] * 7),
    ("every file", "UTF-16"): every_reader(
        "text\na\n".encode("utf-16"), r"a\.csv:1: not UTF-8 but UTF-16; save the file as UTF-8$"
    ),
    ("every file", "bytes that are not UTF-8"): every_reader(
        BAD, r"a\.csv:2: not UTF-8 \(byte 0xef at 2"
    ),
    ("`.jsonl`", "blank lines"): rows("a.jsonl", TWO.replace("\n", "\n \t\r\n\n"), ["a", "b"]),
    ("`.jsonl`", "a line that is no JSON object"): rows(
        "a.jsonl", TWO + "[1]\n", r"a\.jsonl:3: every line has to hold one JSON object, not a list"
    ),
    ("`.jsonl`", "an object with a name twice"): rows(
        "a.jsonl", '{"a": 1, "a": 2}', r"a\.jsonl:1: not JSON \(the name 'a' is there twice\)"
    ),
    ("`.jsonl`, `.json`", r'half a character, `"\ud83d"`'): rows(
        "a.jsonl", TWO + '{"text": "x\\ud83d"}', r"a\.jsonl:3: 'text' holds half a character"
    ),
    ("`.json`", 'a list of objects, also below `"data"`'): rows(
        "a.json", '{"data": [{"text": "a"}, {"text": "b"}]}', ["a", "b"]
    ),
    ("`.json`", "an object a line"): rows("a.json", TWO, ["a", "b"]),
    ("`.json`", "SQuAD's form"): rows("a.json", json.dumps(SQUAD), ["Who?"], "question"),
    ("`.json`", "a passage of RACE's form, in `.jsonl` too"): rows(
        "a.json", json.dumps(PASSAGE), ["A", "B"], "label"
    ),
    ("`.json`", "a passage with fewer answers than questions"): rows(
        "a.json", json.dumps(PASSAGE | {"answers": ["A"]}), r"a\.json: 2 questions, .*1 answers"
    ),
    ("`.json`", "an object of columns"): rows(
        "a.json", '{"text": {"0": "a"}}', r"a\.json is no file of .*no list of objects"
    ),
    ("`.csv`", "commas, quotes and line ends in quotes"): rows(
        "a.csv", 'text,b\n"a, ""b""\nc",1\n', ['a, "b"\nc']
    ),
    ("`.csv`", "tabs or semicolons where commas should be"): rows(
        "a.csv", "text\tb\na\tb\n", r'a\.csv:1: the first name is .* task\.format="tsv" reads it$'
    ),
    ("`.csv`", "a quote that does not end"): rows(
        "a.csv", 'text,b\na,1\n"b,2\n', r"a\.csv:3: unexpected end of data"
    ),
    ("`.csv`, `.tsv`", "two columns of one name"): rows(
        "a.csv", "text,label,label\na,b,c\n", r"a\.csv:1: two columns have the name 'label'"
    ),
    ("`.csv`, `.tsv`", "columns without a name"): rows(
        "a.csv", ",text,,\n0,a,,\n", [{"text": "a"}], None
    ),
    ("`.csv`, `.tsv`", "no line of names, with `task.header`"): rows(
        "a.tsv", "gj04\ta\n", ["a"], header=("id", "text")
    ),
    ("`.csv`, `.tsv`", "a line of names, with `task.header`"): rows(
        "a.tsv", "index\ttext\n0\ta\n", ["a"], header=("id", "star", "text")
    ),
    ("`.csv`, `.tsv`", "a row with more or fewer cells than names"): rows(
        "a.csv", "text,b\na,1\nb\n", r"a\.csv:3: 1 columns; there have to be 2: text, b \("
    ),
    ("`.csv`, `.tsv`", "the same, with `task.uneven_rows=skip`"): rows(
        "a.csv",
        "text,b\na,1\nb\n",
        "rows with another number of cells, left out",
        uneven_rows="skip",
    ),
    ("`.csv`, `.tsv`", "the same, with `task.uneven_rows=keep`"): rows(
        "a.csv",
        "text,b\na,1\nb,2,3\n",
        "rows with another number of cells, only the named cells read",
        uneven_rows="keep",
    ),
    ("`.csv`, `.tsv`", "blank lines"): rows("a.csv", "text,b\n\na,1\n", "blank lines, passed over"),
    ("`.tsv`", "quotes"): rows("a.tsv", 'text\tb\n"a" "b\t"\n', ['"a" "b']),
    ("`.tsv`", 'cells as programs quote them, `"a ""b"""`'): rows(
        "a.tsv", 'text\tb\n"a ""b"""\t1\n', "cells that look quoted, read as they stand"
    ),
    ("`.tsv`", "names in quotes"): rows(
        "a.tsv", '"text"\t"b"\n"a"\t"1"\n', r'a\.tsv:1: the names stand in quotes.*"quoted_tsv"'
    ),
    ("`quoted_tsv`", "tabs, with the quotes of `.csv`"): rows(
        "a.tsv", 'text\tb\n"a\t""b"""\t1\n', ['a\t"b"'], file_format="quoted_tsv"
    ),
    ("`.conll`", "a no-break space in a word"): rows(
        "a.conll", "10\u00a0000\u3000m X B\n", [["10\u00a0000\u3000m"]], "tokens"
    ),
    ("`.conll`", "a blank in a word, columns parted by tabs"): rows(
        "a.conll", "New York\tB\nis\tO\n", [["New York", "is"]], "tokens"
    ),
    ("`.conll`", "`-DOCSTART-`"): rows(
        "a.conll", "-DOCSTART- O\na O\n-DOCSTART- O\n\nb O\n", [["a"], ["b"]], "tokens"
    ),
    ("`.conll`", "tabs in some lines only"): rows(
        "a.conll", "a\tO\nb O\n", r"a\.conll:2: no tab, while other lines of the file have tabs"
    ),
    ("`.conll`", "a line with another number of columns"): rows(
        "a.conll", "a O\nNew York B\n", r"a\.conll:2: 3 columns, parted at blanks; .* line has 2"
    ),
    ("`.conll`", "a word without a tag, a tag without a word"): rows(
        "a.conll", "a\tO\n\tO\n", r"a\.conll:2: the word is empty"
    ),
    ("`.tsv` beside `.ans`", "MCTest's stories and answers"): Case(
        lambda directory, _: (
            put(directory, "a.ans", "A\tB\tC\tD\n")
            and rows("a.tsv", STORY, None, "label").run(directory, _)
        ),
        ["A", "B", "C", "D"],
    ),
    ("`tfds:`", "a class without a name (-1)"): Case(no_class, r"a\.csv:3: label has no label"),
    ("paths", "a glob"): path_case(
        "b.jsonl", "a.jsonl", ask="*.jsonl", want=["a.jsonl", "b.jsonl"]
    ),
    ("paths", "a file with `=`, `,` or `[` in its name"): path_case(
        "split=dev/a,[1].jsonl",
        ask="split=dev/a,[1].jsonl",
        want=["split=dev/a,[1].jsonl"],
        named=True,
    ),
    ("paths", "a folder"): path_case("d/a.jsonl", ask="d", want=r"^d is a folder; name its files"),
    ("texts", "an empty text"): task(
        "classification",
        [{"text": " ", "label": "a"}, {"text": "x", "label": "b"}],
        "examples with an empty text, left out",
    ),
    ("texts", "null, a number, a list"): task(
        "classification",
        [{"text": "a", "label": "a"}, {"text": None, "label": "b"}],
        r"a\.csv:2: text holds None, not a text",
    ),
    ("texts", "more than `task.max_length` tokens"): task(
        "classification",
        [{"text": "a " * 90, "label": "a"}, {"text": "b", "label": "b"}],
        "inputs cut to task.max_length",
        max_length=16,
    ),
    ("classes", "a missing label: null, NaN, an empty cell"): labels(
        "a", "b", None, want=r"a\.csv:3: label has no label"
    ),
    ("classes", "the same, with `task.skip_labels=('',)`"): labels(
        "a", "b", "", want="examples whose label is missing, left out", skip_labels=("",)
    ),
    ("classes", "`-` where annotators did not agree, in `task.skip_labels`"): labels(
        "a", "b", "-", want="examples whose label is '-', left out", skip_labels=("-",)
    ),
    ("classes", "`nan`, `null`, `None` as texts, not in `task.labels`"): labels(
        "a", "b", "None", want=r"a\.csv:3: label is 'None', as programs write a missing value"
    ),
    ("classes", "a list of labels"): labels("a", ["b"], want=r"a\.csv:2: label is a list"),
    ("classes", "blanks around a label"): labels(
        "a", "b ", want="labels with blanks around them, read without"
    ),
    (
        "classes",
        "labels that differ in case or number format alone, not in `task.labels`",
    ): labels("a", "b", "A", want=r"a\.csv:3: the label 'A' differs from 'a' \(a\.csv:1\)"),
    ("classes", "a label with a bar in it"): labels("a|b", "c", want=["a|b", "c"]),
    ("classes", "numbers"): labels("10", "9", "-1", want=["-1", "9", "10"], key="names"),
    ("classes", "true, 1 and 1.0 of JSON"): labels(True, 1, 1.0, 2, want=["true", "1", "1", "2"]),
    ("classes", "one label only"): labels("a", want=r"has 1 label\(s\): a"),
    ("classes", "a label that training has not"): labels(
        "c",
        want=r"a\.csv:1: 'c' is none of the labels learned: a, b",
        learned=[{"label": "a"}, {"label": "b"}],
    ),
    ("numbers", "a text that is no number, true, NaN, infinity"): task(
        "regression", [{"text": "a", "label": "1_0"}], r"a\.csv:1: label is '1_0', not a number"
    ),
    ("choices", "a number of another choice, another letter"): task(
        "multiple_choice",
        [CHOICE | {"label": "C"}],
        r"a\.csv:1: label is 'C'; it has to be 0 to 1, or A to B",
    ),
    ("choices", "another number of choices than in the first example"): task(
        "multiple_choice",
        [CHOICE, CHOICE | {"choices": ["a", "b", "c"]}],
        r"a\.csv:2: 3 choices; there have to be 2",
    ),
    ("answers", "a start that is no whole number"): task(
        "span",
        [{"question": "q", "context": "a", "answers": [{"text": "a", "answer_start": "0"}]}],
        r"a\.csv:1: an answer is ",
        **SPAN,
    ),
    ("answers", "an answer that is not where the file says"): task(
        "span",
        [{"question": "q", "context": "a", "answers": [{"text": "b", "answer_start": 0}]}],
        "answers that are not in their context, left out",
        key="id",
        **SPAN,
    ),
    ("tags", "more or fewer tags than words"): task(
        "token_classification",
        [{"tokens": ["a", "b"], "tags": ["O"]}, {"tokens": ["a"], "tags": ["B"]}],
        r"a\.csv:1: 2 words and 1 tags",
        **TAGS,
    ),
    ("tags", "words beyond `task.max_length`"): task(
        "token_classification",
        [{"tokens": ["a", "b"] * 9, "tags": ["O", "B"] * 9}],
        "inputs cut to task.max_length",
        max_length=8,
        **TAGS,
    ),
    ("sets of labels", "a list of labels"): sets(
        {"label": ["b", "a"]}, {"label": []}, want=[["a", "b"], []]
    ),
    ("sets of labels", "a cell that `task.separator` parts"): sets(
        {"label": "b;a"}, {"label": ""}, want=[["a", "b"], []], separator=";"
    ),
    ("sets of labels", "a column of 0 and 1 for each of `task.labels`"): sets(
        {"a": "1", "b": "0"}, {"a": "1", "b": "1"}, want=[["a"], ["a", "b"]], labels=("a", "b")
    ),
    ("sets of labels", "another value in such a column"): sets(
        {"a": "1", "b": "-1"}, want=r"a\.csv:1: b is '-1'", labels=("a", "b")
    ),
    ("sets of labels", "null"): sets(
        {"label": ["a", "b"]},
        {"label": None},
        want=r"a\.csv:2: label has to hold a list of labels, not None",
    ),
    ("sets of labels", "no label, a label twice"): sets(
        {"label": ["a", "b", "a"]},
        {"label": []},
        want="examples that have a label twice, read once",
    ),
    ("`prepare`", "bytes that are not UTF-8"): prepared("a.txt", BAD, "a.txt"),
    ("`prepare`", "half a character in JSON"): prepared(
        "a.jsonl", '{"text": "x\\ud83d"}\n', "a.jsonl"
    ),
    ("`prepare`", "a document without text"): prepared("a.jsonl", '{"text": " "}\n' + TWO, "empty"),
    ("`prepare`", "a `.json` list larger than `data.max_document_megabytes`"): prepared(
        "a.json",
        json.dumps([{"text": "x" * 1000}] * 1000),
        r"a\.json: longer than data\.max_document_megabytes=1; raise that or write an object",
    ),
    ("`prepare`", "an object without `data.text_field`, or no text in it"): prepared(
        "a.jsonl", TWO, r"a\.jsonl:1: no field data\.text_field='body'; there are: text", "body"
    ),
    ("`score`", "half a pair, a sentence that is no text"): scored(
        "a.jsonl", '{"sentence_good": "a"}\n', r"a\.jsonl:1: no field 'sentence_bad'"
    ),
}


def table() -> dict[tuple[str, str], str]:
    """The rows of the page's last table: the first bold word of the third cell by the others."""
    _, text = PAGE.read_text(encoding="utf-8").split("\n## What is read, counted and refused\n")
    lines = [line.strip("| ").split(" | ") for line in text.split("\n") if line.startswith("| ")]
    return {(of, what): re.search(r"\*\*(\w+)\*\*", says)[1] for of, what, says in lines[1:]}


def test_every_row_is_a_case():
    assert list(table()) == list(CASES)


@pytest.mark.parametrize("row", CASES, ids=[": ".join(row) for row in CASES])
def test_a_row(row, tmp_path, tokenizer):
    case, outcome = CASES[row], table()[row]
    if outcome == REFUSED:
        with pytest.raises(UserError, match=case.want) as error:
            case.run(tmp_path, tokenizer)
        assert "\n" not in str(error.value)
        return
    found = case.run(tmp_path, tokenizer)
    if outcome == READ:
        assert found.values == case.want
        assert not any(found.counts.values()) or row[0] == "sets of labels"
    else:
        assert outcome == COUNTED
        counted = [what for what, count in found.counts.items() if count and case.want in what]
        assert counted, found.counts
