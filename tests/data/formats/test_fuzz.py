"""What Python's own csv and json wrote comes back equal, or is refused by file and line."""

import contextlib
import csv
import itertools
import json
import re
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deberta_jax.data.formats import json_text
from deberta_jax.data.tasks.sources import read_rows
from deberta_jax.errors import UserError
from deberta_jax.evaluation.sentence_files import read_items
from deberta_jax.preparation.corpora import CorpusReport, documents
from tests.data.formats.hostile import HALVES, as_written, characters, fuzz, texts, written

broken = st.text(characters | st.sampled_from(HALVES), max_size=8)
names = st.text(characters, min_size=1, max_size=6).filter(lambda name: name[0] != "\ufeff")


def refused(path, call, *arguments):
    """That the file is refused in one line that names it and the line, or an object of it."""
    with pytest.raises(UserError) as error:
        call(*arguments)
    message = str(error.value)
    assert "\n" not in message and re.match(rf"{re.escape(path)}(:\d+|, object \d+)?[: ]", message)


def halved(value):
    return bool(re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | broken,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(broken, children, max_size=3),
    max_leaves=5,
)
objects = st.lists(
    st.dictionaries(broken, values, min_size=1, max_size=4), min_size=1, max_size=4
).filter(lambda rows: not any({"questions", "options"} <= set(row) for row in rows))


@given(objects, st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n \n"]))
@fuzz
def test_json_lines(tmp_path, rows, ascii_only, end):
    halves = halved(rows)
    assume(ascii_only or not halves)
    text = "".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in rows)
    path = written(tmp_path / "a.jsonl", text)
    # json.dumps writes the two halves of one character in one string as that character.
    rows = [json.loads(json.dumps(row)) for row in rows]
    if halved(rows):
        refused(path, read_rows, path)
    else:
        assert [row.values for row in read_rows(path)] == rows
        other = written(tmp_path / "b.json", text)
        if len(rows) > 1:
            assert [row.values for row in read_rows(other)] == rows


@given(st.recursive(texts, lambda some: st.lists(some, max_size=3) | st.dictionaries(texts, some)))
@fuzz
def test_what_is_written_is_one_line_to_every_program(value):
    line = json_text.json_line(value)
    assert line.splitlines(keepends=True) == [line] and json.loads(line) == value


@given(objects, st.booleans(), st.sampled_from([None, 1, "\t"]))
@fuzz
def test_a_json_list(tmp_path, rows, below_data, indent):
    document = {"version": 1, "data": rows} if below_data else rows
    path = written(tmp_path / "a.json", json.dumps(document, indent=indent))
    rows = [json.loads(json.dumps(row)) for row in rows]
    assume(not any("paragraphs" in row for row in rows))
    if halved(rows):
        refused(path, read_rows, path)
    else:
        assert [row.values for row in read_rows(path)] == rows


@st.composite
def tables(draw, columns, cells):
    header = draw(st.lists(names, min_size=columns, max_size=4, unique=True))
    row = st.lists(cells, min_size=len(header), max_size=len(header))
    return header, draw(st.lists(row, min_size=1, max_size=4))


def values_of(found):
    return [row.values for row in found]


def as_rows(header, rows):
    return [dict(zip(header, row, strict=True)) for row in rows]


@given(
    tables(1, texts),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\r\n", "\n"]),
    st.sampled_from([(",", "csv"), ("\t", "quoted_tsv")]),
)
@fuzz
def test_tables_with_quotes(tmp_path, table, quoting, end, kind):
    header, rows = table
    mark, name = kind
    text = as_written(header, rows, delimiter=mark, quoting=quoting, lineterminator=end)
    path = written(tmp_path / f"a.{name}", text)
    tabs = mark != "\t" and "".join(header).count("\t") >= len(header)
    if tabs or (len(header) == 1 and any(other in header[0] for other in {*",;\t"} - {mark})):
        refused(path, lambda: read_rows(path, file_format=name))
        return
    # Python's writer quotes a carriage return only where it is part of its line ends.
    if end == "\n" and quoting != csv.QUOTE_ALL:
        assume(not any(row[-1].endswith("\r") for row in [header, *rows]))
        if any("\r" in cell for cell in itertools.chain(header, *rows)):
            with contextlib.suppress(UserError):
                assert values_of(read_rows(path, file_format=name)) == as_rows(header, rows)
            return
    found = read_rows(path, file_format=name)
    assert values_of(found) == as_rows(header, rows)


@given(tables(2, texts))
@fuzz
def test_tables_of_tabs_without_quotes(tmp_path, table):
    header, rows = table
    assume(not any(re.search(r"[\t\n]", cell) for cell in itertools.chain(header, *rows)))
    assume(
        not any(row[-1].endswith("\r") for row in [header, *rows]) and "\r" not in "".join(header)
    )
    path = written(tmp_path / "a.tsv", "".join("\t".join(row) + "\n" for row in [header, *rows]))
    quoted = all(name[0] == name[-1] == '"' and len(name) > 2 for name in header)
    if quoted or any(name[0] == '"' and name.count('"') % 2 for name in header):
        refused(path, read_rows, path)
        return
    found = read_rows(path)
    assert values_of(found) == as_rows(header, rows)


@given(tables(2, texts), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
@fuzz
def test_quotes_of_a_tsv_file_are_refused_or_counted(tmp_path, table, quoting):
    header, rows = table
    cells = list(itertools.chain(header, *rows))
    assume(not any("\t" in cell and "\n" in cell for cell in cells))
    assume(not any(row[-1].endswith("\r") for row in [header, *rows]))
    text = as_written(header, rows, delimiter="\t", quoting=quoting, lineterminator="\n")
    path, counts = written(tmp_path / "a.tsv", text), Counter()
    try:
        found = read_rows(path, counts=counts)
    except UserError as error:
        assert re.match(rf"{re.escape(path)}:\d+: ", str(error))
        return
    pairs = zip(found, rows, strict=True)
    differing = sum(
        cell != got
        for row, want in pairs
        for got, cell in zip(row.values.values(), want, strict=True)
    )
    counted = sum(count for what, count in counts.items() if "quoted" in what)
    assert differing <= counted


@st.composite
def tagged(draw, word):
    sentence = st.lists(st.tuples(word, word), min_size=1, max_size=4)
    return draw(st.lists(sentence, min_size=1, max_size=3))


def conll(sentences, mark):
    return "\n".join("".join(f"{w}{mark}{t}\n" for w, t in s) for s in sentences)


def check_sentences(path, sentences):
    if any(re.match(r"-DOCSTART-($|[ \t])", word) for s in sentences for word, _ in s):
        return
    found = [row.values for row in read_rows(path)]
    assert found == [
        {"tokens": [word for word, _ in s], "tags": [tag for _, tag in s]} for s in sentences
    ]


@given(tagged(names.filter(lambda text: not re.search(r"[\t\n]|\r$", text))))
@fuzz
def test_words_and_tags_by_tabs(tmp_path, sentences):
    check_sentences(written(tmp_path / "a.conll", conll(sentences, "\t")), sentences)


@given(tagged(names.filter(lambda text: not re.search(r"[\t\n ]|\r$", text))))
@fuzz
def test_words_and_tags_by_blanks(tmp_path, sentences):
    check_sentences(written(tmp_path / "a.conll", conll(sentences, " ")), sentences)


lines = st.text(characters, max_size=12).filter(
    lambda text: "\n" not in text and not text.endswith("\r") and text[:1] != "\ufeff"
)


@given(st.lists(lines, min_size=1, max_size=5), st.sampled_from(["\n", "\r\n"]))
@fuzz
def test_sentences_to_score(tmp_path, sentences, end):
    path = written(tmp_path / "a.txt", "".join(sentence + end for sentence in sentences))
    assert [item.sentences[0] for item in read_items(path, "text")] == sentences


@given(texts)
@fuzz
def test_a_text_to_prepare(tmp_path, text):
    assume(text and not text.isspace() and text[0] != "\ufeff")
    path = written(tmp_path / "a.txt", text)
    (found,) = ["".join(d.pieces) for d in documents(path, "text", 1, CorpusReport())]
    assert found == text


@given(st.lists(broken, min_size=1, max_size=5), st.booleans())
@fuzz
def test_json_lines_to_prepare_lose_half_characters_alone(tmp_path, pieces, ascii_only):
    assume(ascii_only or not halved(pieces))
    lines = [json.dumps({"text": text}, ensure_ascii=ascii_only) + "\n" for text in pieces]
    path, report = written(tmp_path / "a.jsonl", "".join(lines)), CorpusReport()
    whole = [json.loads(json.dumps(text)) for text in pieces]
    want = [re.sub("[\ud800-\udfff]", "", text) for text in whole]
    kept = [text for text in want if text and not text.isspace()]
    assume(kept)
    assert ["".join(d.pieces) for d in documents(path, "text", 1, report)] == kept
    assert sum(report.halves.values()) == sum(map(len, whole)) - sum(map(len, want))
