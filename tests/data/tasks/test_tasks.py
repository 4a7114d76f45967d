"""Examples to inputs and targets, outputs to predictions, for every kind of task."""

import itertools

import numpy as np
import pytest

from deberta_jax.data.tasks import TASKS
from deberta_jax.data.tasks.config import TaskConfig
from deberta_jax.data.tasks.sources import Row
from deberta_jax.errors import UserError


def rows(*values):
    return [Row(f"file:{number}", v) for number, v in enumerate(values, start=1)]


def make(kind, tokenizer, given, **options):
    return TASKS[kind](TaskConfig(**options), tokenizer, given)


PAIRS = rows(
    {"a": "To be or not to be", "b": "that is the question", "label": "no"},
    {"a": "Speak", "b": "I charge thee, speak! " * 9, "label": "yes"},
)


def test_a_pair_is_joined_as_the_tokenizer_joins_it_and_cut_from_the_longer_text(tokenizer):
    options = dict(texts=("a", "b"), max_length=24)
    task = make("classification", tokenizer, PAIRS, **options)
    given = task.encode(PAIRS, training=True)
    whole = tokenizer.encode(PAIRS[0].values["a"], PAIRS[0].values["b"])
    assert task.label_names == ("no", "yes") and len(whole) <= 24
    np.testing.assert_array_equal(given.items[0]["input_ids"], whole)
    ids = given.items[1]["input_ids"]
    assert len(ids) == 24 and ids[-1] == tokenizer.sep_id
    np.testing.assert_array_equal(ids[:23], tokenizer.encode("Speak", PAIRS[1].values["b"])[:23])
    assert [item["labels"] for item in given.items] == [0, 1]
    assert given.counts["inputs cut to task.max_length"] == 1


def test_labels_have_several_spellings_in_the_order_that_is_stated(tokenizer):
    given = rows({"text": "a b", "label": 1}, {"text": "c d", "label": "negative"})
    task = make("classification", tokenizer, given, labels=("0|negative", "1|positive"))
    assert [item["labels"] for item in task.encode(given, True).items] == [1, 0]
    logits = [np.array([0.0, 2.0]), np.array([1.0, 0.0])]
    found = task.predictions(logits, None)
    assert [f["prediction"] for f in found] == ["1", "0"]
    assert found[0]["probabilities"]["1"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-5)
    assert task.score(found, [{"label": "1"}, {"label": "1"}]) == {"accuracy": 0.5}


def test_an_empty_text_is_left_out_of_training_and_kept_for_measuring(tokenizer):
    given = rows({"text": "  ", "label": "x"}, {"text": "word", "label": "y"})
    task = make("classification", tokenizer, given)
    training, measured = task.encode(given, True), task.encode(given, False)
    assert len(training.items) == 1 and len(measured.items) == 2
    assert training.counts["examples with an empty text, left out"] == 1
    assert list(measured.items[0]["input_ids"]) == [tokenizer.cls_id, tokenizer.sep_id]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "w", "label": "z"}, r"file:1: 'z' is none of the labels learned: x, y"),
        ({"text": "w"}, r"file:1: no column 'label'; there are: text"),
        ({"label": "x"}, r"file:1: no column 'text'"),
        ({"text": 3, "label": "x"}, r"file:1: text holds 3, not a text"),
    ],
)
def test_a_wrong_row_is_named(tokenizer, values, message):
    learned = rows({"text": "a", "label": "x"}, {"text": "b", "label": "y"})
    task = make("classification", tokenizer, learned)
    with pytest.raises(UserError, match=message):
        task.encode(rows(values), training=False)


def test_one_label_is_no_task(tokenizer):
    with pytest.raises(UserError, match=r"has 1 label\(s\): x; a task has at least two"):
        make("classification", tokenizer, rows({"text": "a", "label": "x"}))


def test_numbers(tokenizer):
    given = rows({"text": "a", "label": "2.5"}, {"text": "b", "label": 4})
    task = make("regression", tokenizer, given, scores=("pearson",))
    assert [item["labels"] for item in task.encode(given, True).items] == [2.5, 4.0]
    with pytest.raises(UserError, match="file:1: label is 'much', not a number"):
        task.encode(rows({"text": "a", "label": "much"}), True)


QUESTION = {
    "context": "Romeo loved Juliet. " * 6,
    "question": "Who was loved?",
    "choices": ["Juliet", "Tybalt himself", "Paris"],
    "label": "A",
}


def test_choices_stand_side_by_side_and_the_context_is_cut(tokenizer):
    options = dict(texts=("context", "question"), max_length=32)
    task = make("multiple_choice", tokenizer, [], **options)
    given = task.encode(rows(QUESTION, QUESTION | {"label": 2}), True)
    item = given.items[0]
    assert item["input_ids"].shape[0] == 3 and item["input_ids"].shape[1] <= 32
    for choice, ids, segments in zip(
        QUESTION["choices"], item["input_ids"], item["segment_ids"], strict=True
    ):
        tail = [*tokenizer.encode(f"{QUESTION['question']} {choice}")[1:]]
        real = ids[segments > 0]
        assert list(real[-len(tail) :]) == tail and real[0] == tokenizer.cls_id
    assert [x["labels"] for x in given.items] == [0, 2]
    assert task.predictions([np.array([0.0, 1.0, 0.5])], given) == [{"prediction": 1}]
    with pytest.raises(UserError, match="file:1: 2 choices; there have to be 3"):
        task.encode(rows(QUESTION | {"choices": ["a", "b"]}), True)
    with pytest.raises(UserError, match="file:1: label is 'D'; it has to be 0 to 2, or A to C"):
        task.encode(rows(QUESTION | {"label": "D"}), True)


def test_choices_may_stand_in_columns_of_their_own(tokenizer):
    options = dict(texts=("premise",), choices=("choice1", "choice2"))
    task = make("multiple_choice", tokenizer, [], **options)
    row = {"premise": "It rained.", "choice1": "Wet.", "choice2": "Dry.", "label": "choice2"}
    assert task.encode(rows(row), True).items[0]["labels"] == 1


CONTEXT = (
    "Antony fled. The ships of Egypt turned, and Antony followed them to Alexandria, "
    "where Caesar found him. It was a long way, and many were lost upon it. "
) * 2


def asked(text, start=None, **more):
    start = CONTEXT.index(text) if start is None else start
    answers = [{"text": text, "answer_start": start}]
    return {"id": text, "question": "Where to?", "context": CONTEXT, "answers": answers, **more}


SPAN = dict(
    texts=("question", "context"),
    label="answers",
    max_length=40,
    stride=12,
    max_question_length=10,
    scores=("f1", "exact_match"),
)


@pytest.mark.parametrize("text", ["Alexandria", "Antony fled", "upon it", "ships of Egypt turned"])
def test_an_answer_is_found_again_in_some_window(tokenizer, text):
    given = rows(asked(text))
    task = make("span", tokenizer, given, **SPAN)
    encoded = task.encode(given, True)
    assert len(encoded.items) > 2
    assert all(len(item["input_ids"]) <= 40 for item in encoded.items)
    held = [item for item in encoded.items if item["starts"] > 0]
    assert held and len(held) < len(encoded.items)
    # Logits that point at the targets of a window that holds the answer.
    logits = []
    for item in encoded.items:
        row = np.zeros((len(item["input_ids"]), 2), np.float32)
        if item is held[0]:
            row[item["starts"], 0] = row[item["ends"], 1] = 5
        logits.append(row)
    (found,) = task.predictions(logits, encoded)
    assert text in found["prediction"] and len(found["prediction"]) <= len(text) + 1
    assert task.score([found], encoded.examples) == {"f1": 1.0, "exact_match": 1.0}


def test_windows_cover_the_context_and_overlap_by_the_stride(tokenizer):
    task = make("span", tokenizer, rows(asked("Egypt")), **SPAN)
    encoded = task.encode(rows(asked("Egypt")), False)
    spans = [window.spans_N2 for window in encoded.details]
    for before, after in itertools.pairwise(spans):
        np.testing.assert_array_equal(before[-12:], after[:12])
    everything = np.concatenate([spans[0], *(s[12:] for s in spans[1:])])
    ids, offsets = tokenizer.encode_with_offsets([CONTEXT])[0]
    np.testing.assert_array_equal(everything, offsets)
    for token, (start, end) in zip(ids, offsets, strict=True):
        assert tokenizer.pieces[token].replace("\u2581", "") == CONTEXT[start:end]


def test_an_answer_elsewhere_than_the_file_says_is_left_out_and_counted(tokenizer):
    given = rows(asked("Alexandria", start=3), asked("Rome", start=5), asked("Egypt"))
    task = make("span", tokenizer, given, **SPAN)
    training, measured = task.encode(given, True), task.encode(given, False)
    assert [example["id"] for example in training.examples] == ["Egypt"]
    assert training.counts["answers that are not in their context, left out"] == 2
    assert len(measured.examples) == 3


def test_questions_without_an_answer(tokenizer):
    none = asked("Egypt", is_impossible=True) | {"id": "none"}
    given = rows(asked("Alexandria"), none)
    task = make("span", tokenizer, given, **SPAN)
    encoded = task.encode(given, True)
    logits = []
    for item, window in zip(encoded.items, encoded.details, strict=True):
        row = np.zeros((len(item["input_ids"]), 2), np.float32)
        row[0] = 4 if window.example else -4  # [CLS]
        if item["starts"]:
            row[item["starts"], 0] = row[item["ends"], 1] = 1
        logits.append(row)
    found = task.predictions(logits, encoded)
    assert found[0]["no_answer"] == pytest.approx(-8 - 2) and found[1]["no_answer"] > 0
    assert [f["answer"] for f in found] == ["Alexandria,", ""] or found[0]["answer"] == "Alexandria"
    got = task.score(found, encoded.examples)
    assert got["f1"] == got["exact_match"] == got["best_f1"] == 1.0


def test_a_window_without_room_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"task\.stride 128 must be less than"):
        make("span", tokenizer, [], **(SPAN | {"stride": 128}))


TAGGED = {"tokens": ["Antony", "loved", "Cleopatra", "of", "Egypt"]}
TAGS = ["B-PER", "O", "B-PER", "O", "B-LOC"]


def test_tags_are_learned_at_first_tokens_and_cut_words_are_outside(tokenizer):
    given = rows(TAGGED | {"tags": TAGS})
    options = dict(texts=("tokens",), label="tags", max_length=12, scores=("f1", "accuracy"))
    task = make("token_classification", tokenizer, given, **options)
    assert task.label_names == ("B-LOC", "B-PER", "O")
    encoded = task.encode(given, True)
    item, firsts = encoded.items[0], encoded.details[0]
    text = " ".join(TAGGED["tokens"])
    np.testing.assert_array_equal(item["input_ids"][:-1], tokenizer.encode(text)[:11])
    np.testing.assert_array_equal(np.flatnonzero(item["weights"]), firsts)
    names = [task.label_names[label] for label in item["labels"][firsts]]
    assert names == TAGS[: len(firsts)]
    logits = np.zeros((len(item["input_ids"]), 3), np.float32)
    logits[firsts, item["labels"][firsts]] = 1
    (found,) = task.predictions([logits], encoded)
    assert found["prediction"] == names + ["O"] * (5 - len(firsts))
    with pytest.raises(UserError, match="file:1: 5 words and 1 tags"):
        task.encode(rows(TAGGED | {"tags": ["O"]}), True)
