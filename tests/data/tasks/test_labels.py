"""Labels are what the file says, or are refused with its line; nothing is guessed."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deberta_jax.data.tasks import TASKS
from deberta_jax.data.tasks.config import TaskConfig
from deberta_jax.data.tasks.labels import label_text, number_of, ordered, text_of
from deberta_jax.data.tasks.sources import Row, read_rows
from deberta_jax.errors import UserError
from tests.data.formats.hostile import as_written, fuzz, texts, written


def rows(*labels):
    return [Row(f"f:{n}", {"text": f"word {n}", "label": x}) for n, x in enumerate(labels, 1)]


def made(tokenizer, *labels, kind="classification", **options):
    return TASKS[kind](TaskConfig(**options), tokenizer, rows(*labels))


@pytest.mark.parametrize("missing", [None, math.nan, "", "  ", "\u00a0"])
def test_a_missing_label_is_refused_or_left_out_if_so_asked(tokenizer, missing):
    with pytest.raises(UserError, match=r"^f:2: label has no label; every example needs one, or"):
        made(tokenizer, "a", missing, "b")
    task = made(tokenizer, "a", missing, "b", skip_labels=("",))
    assert task.label_names == ("a", "b")
    given = task.encode(rows("a", missing, "b"), training=False)
    assert [example["label"] for example in given.examples] == ["a", "b"]
    assert given.counts["examples whose label is missing, left out"] == 1
    # A set without labels to read is predicted whole.
    assert len(task.encode(rows("a", missing), training=False, labelled=False).items) == 2


@pytest.mark.parametrize("stated", [(), ("a", "b")])
def test_a_label_that_is_missing_where_it_is_measured_is_refused(tokenizer, stated):
    task = made(tokenizer, "a", "b", labels=stated)
    with pytest.raises(UserError, match=r"^f:1: label has no label"):
        task.encode(rows(None), training=False)


@pytest.mark.parametrize("written", ["nan", "NaN", "None", "null", "<NA>"])
def test_what_programs_write_for_a_missing_value_is_a_label_only_if_stated(tokenizer, written):
    with pytest.raises(
        UserError, match=rf"^f:3: label is '{written}', as programs write a missing"
    ):
        made(tokenizer, "a", "b", written)
    assert made(tokenizer, "a", written, labels=("a", written)).label_names == ("a", written)
    assert made(tokenizer, "a", "b", written, skip_labels=(written,)).label_names == ("a", "b")


@pytest.mark.parametrize("value", [["a"], [], {"a": 1}])
def test_a_list_of_labels_is_no_label(tokenizer, value):
    with pytest.raises(UserError, match=r"^f:1: label is an? (list|object), .*multi_label"):
        made(tokenizer, value, "a")


def test_blanks_around_a_label_are_no_part_of_it_and_counted(tokenizer):
    task = made(tokenizer, "pos", "pos ", "neg", "\tneg\u00a0")
    assert task.label_names == ("neg", "pos")
    given = task.encode(rows("pos ", "neg", "\tneg"), training=True)
    assert [item["labels"] for item in given.items] == [1, 0, 0]
    assert given.counts["labels with blanks around them, read without"] == 2


@pytest.mark.parametrize(
    ("one", "other"), [("pos", "Pos"), ("1", "1.0"), ("é", "e\u0301"), ("a b", "a\u00a0b")]
)
def test_labels_that_differ_in_spelling_alone_are_refused_unless_stated(tokenizer, one, other):
    with pytest.raises(UserError, match=r"^f:3: the label .* differs from .* \(f:1\)"):
        made(tokenizer, one, "x", other)
    assert made(tokenizer, one, other, labels=(one, other)).num_labels == 2
    task = made(tokenizer, one, "x", other, labels=(f"{one}|{other}", "x"))
    assert [i["labels"] for i in task.encode(rows(one, other, "x"), True).items] == [0, 0, 1]


def test_numbers_stand_in_the_order_of_their_values(seed):
    rng = np.random.default_rng(seed)
    numbers = sorted({int(n) for n in rng.integers(-50, 500, 40)})
    names = list(map(str, rng.permutation(numbers)))
    assert ordered(names) == list(map(str, numbers))
    assert ordered(["10", "9", "1.5"]) == ["1.5", "9", "10"]
    assert ordered(["10", "9", "b"]) == ["10", "9", "b"]


def test_json_s_values_are_spelled_as_files_spell_them():
    spelled = [label_text(value, "", "") for value in (True, 1, 1.0, 0.5, "1")]
    assert spelled == ["true", "1", "1", "0.5", "1"]


def test_a_bar_in_a_label_of_the_data_parts_nothing(tokenizer):
    task = made(tokenizer, "Action|Comedy", "Drama", "C\\D")
    assert task.label_names == ("Action|Comedy", "C\\D", "Drama")
    # What a run keeps of them means the same labels again, without the examples.
    again = made(tokenizer, "Drama", labels=task.stated_labels)
    assert again.label_names == task.label_names


def test_a_stated_label_is_first_what_the_data_have(tokenizer):
    stated = ("Action|Comedy", "Drama|Krimi")
    task = made(tokenizer, "Action|Comedy", "Krimi", labels=stated)
    assert task.label_names == ("Action|Comedy", "Drama")
    assert task.stated_labels == (r"Action\|Comedy", "Drama|Krimi")
    given = task.encode(rows("Action|Comedy", "Krimi", "Drama"), training=True)
    assert [item["labels"] for item in given.items] == [0, 1, 1]
    with pytest.raises(UserError, match="'Action' is none of the labels learned"):
        task.encode(rows("Action"), training=True)
    escaped = made(tokenizer, "Drama", labels=(r"Action\|Comedy", "Drama"))
    assert escaped.label_names == ("Action|Comedy", "Drama")


@pytest.mark.parametrize("stated", [("a|b", "b|c"), ("a", "a"), ("a|", "b")])
def test_stated_labels_are_told_apart(tokenizer, stated):
    with pytest.raises(UserError, match=r"^task\.labels: the label '.?' is (listed twice|empty)"):
        made(tokenizer, "x", labels=stated)


def test_annotators_that_did_not_agree_are_left_out(tokenizer):
    task = made(tokenizer, "yes", "-", "no", skip_labels=("-",))
    given = task.encode(rows("-", "yes", "-"), training=True)
    assert task.label_names == ("no", "yes") and len(given.items) == 1
    assert given.counts["examples whose label is '-', left out"] == 2


@pytest.mark.parametrize("kind", ["span", "token_classification"])
def test_what_cannot_skip_says_so(tokenizer, kind):
    texts = ("a", "b") if kind == "span" else ("a",)
    config = TaskConfig(skip_labels=("-",), texts=texts, max_length=400)
    with pytest.raises(UserError, match=r"task\.skip_labels is \('-',\); only examples"):
        TASKS[kind](config, tokenizer, [])


@pytest.mark.parametrize(
    ("value", "want"), [("2.5", 2.5), (" 3 ", 3), (4, 4), ("-1e-3", -0.001), (".5", 0.5)]
)
def test_numbers_are_read(value, want):
    assert number_of(Row("f:1", {"n": value}), "n") == want


@pytest.mark.parametrize(
    "value", [True, None, "", "1_000", "1,5", "nan", "inf", math.nan, math.inf, "١", [1], "1e999"]
)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(UserError, match=r"^f:1: n is .*, not a number"):
        number_of(Row("f:1", {"n": value}), "n")


def test_columns_are_first_what_they_are_called():
    row = Row("f:1", {"C++": "x", "a": "1", "b": "2", "a|b": "3", "q+r": "4"})
    assert text_of(row, "C++") == "x" and row["a|b"] == "3" and text_of(row, "q+r") == "4"
    assert text_of(row, "a+b") == "1 2" and text_of(row, "z|a+b") == "1 2"
    assert text_of(row, r"a+C\+\+") == "1 x" and row[r"a\|b"] == "3"
    with pytest.raises(UserError, match=r"^f:1: no column 'c'; there are: "):
        text_of(row, "a+c")


@pytest.mark.parametrize("label", [None, True, "", 4, "4", "-1", "E", "²", "٣", 1.5, "a"])
def test_a_choice_is_one_of_them(tokenizer, label):
    row = Row("f:1", {"text": "q", "choices": ["a b", "c", "d", "e"], "label": label})
    task = TASKS["multiple_choice"](TaskConfig(), tokenizer, [row])
    with pytest.raises(UserError, match=r"^f:1: label is .*; it has to be 0 to 3, or A to D"):
        task.encode([row], training=True)


@pytest.mark.parametrize(
    "fault",
    [
        {"answers": [{"text": None, "answer_start": 0}]},
        {"answers": [{"text": "a", "answer_start": "0"}]},
        {"answers": [{"text": "a", "answer_start": 0.5}]},
        {"answers": None},
        {"answers": {"text": ["a"], "answer_start": []}},
        {"answers": [], "is_impossible": "false"},
    ],
)
def test_answers_are_not_coerced(tokenizer, fault):
    row = Row("f:1", {"question": "q", "context": "a b"} | fault)
    options = dict(texts=("question", "context"), label="answers", max_length=400)
    with pytest.raises(UserError, match=r"^f:1: "):
        TASKS["span"](TaskConfig(**options), tokenizer, [row])


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["O", ""], r"^f:1: tags has no label"),
        (["O", None], "^f:1: tags has to hold a list of texts; one is None"),
        ([0, 1], "^f:1: tags has to hold a list of texts; one is 0"),
        ("O O", "^f:1: tags has to hold a list of texts, not 'O O'"),
    ],
)
def test_tags_are_not_coerced(tokenizer, tags, message):
    row = Row("f:1", {"tokens": ["a", "b"], "tags": tags})
    with pytest.raises(UserError, match=message):
        config = TaskConfig(texts=("tokens",), label="tags")
        TASKS["token_classification"](config, tokenizer, [row])


def test_blanks_around_tags_are_counted(tokenizer):
    row = Row("f:1", {"tokens": ["a", "b"], "tags": ["O ", "B-X"]})
    config = TaskConfig(texts=("tokens",), label="tags")
    task = TASKS["token_classification"](config, tokenizer, [row])
    assert task.label_names == ("B-X", "O")
    counts = task.encode([row], training=True).counts
    assert counts == Counter({"labels with blanks around them, read without": 1}) | counts


@given(st.lists(texts, min_size=2, max_size=6))
@fuzz
def test_labels_are_those_of_the_file_or_refused(tmp_path, tokenizer, labels):
    table = as_written(["text", "label"], [["w", label] for label in labels])
    path = written(tmp_path / "a.csv", table)
    counts = Counter()
    try:
        given_rows = read_rows(path)
        task = TASKS["classification"](TaskConfig(), tokenizer, given_rows)
        examples = task.encode(given_rows, training=True)
        counts = examples.counts
    except UserError as error:
        message = str(error)
        assert re.match(rf"{re.escape(path)}:\d+: |task\.label='label' has 1 ", message)
        return
    assert [example["label"] for example in examples.examples] == [x.strip() for x in labels]
    padded = sum(label != label.strip() for label in labels)
    assert counts["labels with blanks around them, read without"] == padded
    stated = TaskConfig(labels=task.stated_labels)
    assert TASKS["classification"](stated, tokenizer, []).label_names == task.label_names
