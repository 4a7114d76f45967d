"""Several labels of one example: read, predicted by thresholds, scored."""

import numpy as np
import pytest

from deberta_jax.data.tasks import TASKS, scores
from deberta_jax.data.tasks.batches import Batches
from deberta_jax.data.tasks.config import TaskConfig
from deberta_jax.data.tasks.sources import Row
from deberta_jax.errors import UserError

GIVEN = (["joy", "anger"], [], ["fear"])


def rows(*labels, **more):
    return [
        Row(f"f:{n}", {"text": f"word {n}", **({"label": x} if x is not more else {})})
        for n, x in enumerate(labels, 1)
    ]


def made(tokenizer, given, **options):
    options = {"scores": ("micro_f1", "macro_f1", "accuracy")} | options
    return TASKS["multi_label"](TaskConfig(**options), tokenizer, given)


def sets(encoded):
    return [item["label_set"].tolist() for item in encoded.items]


def test_lists_of_labels(tokenizer):
    given = rows(*GIVEN, ["joy", "joy "])
    task = made(tokenizer, given)
    assert task.label_names == ("anger", "fear", "joy")
    encoded = task.encode(given, training=True)
    assert sets(encoded) == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert encoded.examples[0]["label"] == ["anger", "joy"]
    assert encoded.counts["examples without any label"] == 1
    assert encoded.counts["examples that have a label twice, read once"] == 1


def test_cells_that_a_separator_parts(tokenizer):
    given = rows("joy| anger", "", "fear")
    task = made(tokenizer, given, separator="|")
    assert sets(task.encode(given, training=True)) == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    with pytest.raises(UserError, match=r"^f:1: label has to hold a list of labels, .*separator"):
        made(tokenizer, given)


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), (1, 0), (True, False), ("True", "False")])
def test_a_column_for_each_label(tokenizer, yes, no):
    labels = ("toxic", "a|b", "insult|i")
    columns = [{"text": "x", "toxic": yes, "a|b": no, "i": yes}, {"text": "y"}]
    columns[1] |= {"toxic": no, "a|b": no, "i": no}
    given = [Row(f"f:{n}", values) for n, values in enumerate(columns, 1)]
    task = made(tokenizer, given, labels=labels)
    assert sets(task.encode(given, training=True)) == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("value", ["-1", "", None, 0.5, 2, "yes", [1]])
def test_a_label_s_column_holds_0_or_1(tokenizer, value):
    given = [Row("f:1", {"text": "x", "a": 1, "b": value})]
    task = made(tokenizer, given, labels=("a", "b"))
    with pytest.raises(UserError, match=r"^f:1: b is "):
        task.encode(given, training=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"^f:1: label has to hold a list of labels, not None \(a missing one is \[\]"),
        ("joy", r"^f:1: label has to hold a list of labels, not 'joy'"),
        (["joy", None], "^f:1: label has no label"),
        (["joy", ["anger"]], "^f:1: label is a list"),
        (["grief"], "^f:1: 'grief' is none of the labels learned"),
    ],
)
def test_what_is_no_set_of_labels_is_refused(tokenizer, value, message):
    task = made(tokenizer, rows(*GIVEN))
    with pytest.raises(UserError, match=message):
        task.encode(rows(value), training=False)


def test_a_missing_set_may_be_left_out(tokenizer):
    task = made(tokenizer, rows(*GIVEN), skip_labels=("",))
    encoded = task.encode(rows(None, ["joy"]), training=True)
    assert len(encoded.items) == 1
    assert encoded.counts["examples whose label is missing, left out"] == 1


@pytest.mark.parametrize("thresholds", [(0.5, 0.5), (0.0,), (1.0, 0.5, 0.5)])
def test_thresholds_are_one_or_one_for_each_label(tokenizer, thresholds):
    with pytest.raises(UserError, match=r"^task\.thresholds is .* one for each of the 3 labels"):
        made(tokenizer, rows(*GIVEN), thresholds=thresholds)


def test_each_label_is_predicted_by_its_own_threshold(tokenizer, seed):
    rng = np.random.default_rng(seed)
    thresholds = tuple(rng.uniform(0.1, 0.9, 3))
    task = made(tokenizer, rows(*GIVEN), thresholds=thresholds)
    logits_NC = rng.normal(size=(20, 3))
    found = task.predictions(list(logits_NC), None)
    shares_NC = 1 / (1 + np.exp(-logits_NC))
    for row, prediction in zip(shares_NC, found, strict=True):
        chosen = np.array(task.label_names)[row >= thresholds]
        assert prediction["prediction"] == list(chosen)
        np.testing.assert_allclose([*prediction["probabilities"].values()], row, atol=1e-6)


def test_scores_are_scikit_learn_s(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    labels, found = rng.random((2, 40, 5)) < np.array([0.5, 0.1, 0.9, 0.0, 0.3])
    got = scores.of_label_sets(("micro_f1", "macro_f1", "accuracy"), labels, found)
    for average in ("micro", "macro"):
        want = metrics.f1_score(labels, found, average=average, zero_division=0)
        assert got[f"{average}_f1"] == pytest.approx(want)
    assert got["accuracy"] == pytest.approx(metrics.accuracy_score(labels, found))


def test_the_best_threshold_has_the_best_f1(seed):
    rng = np.random.default_rng(seed)
    shares = rng.integers(0, 12, 30) / 12  # some equal
    labels = rng.random(30) < shares

    def f1(threshold):
        found = shares >= threshold
        return scores.of_label_sets(("macro_f1",), labels[:, None], found[:, None])["macro_f1"]

    best = scores.best_f1_threshold(shares, labels)
    assert f1(best) == pytest.approx(max(f1(t) for t in (*shares, 0.001)))
    assert scores.best_f1_threshold(shares, np.zeros(30, bool)) == 0.5


def test_tuned_thresholds_are_those_of_the_measured_set(tokenizer, seed):
    rng = np.random.default_rng(seed)
    given = rows(*([["joy"], ["anger", "fear"], []] * 10))
    logits = list(rng.normal(size=(30, 3)) - 2)
    for thresholds in ((), (0.5,)):
        task = made(tokenizer, given, thresholds=thresholds)
        examples = task.encode(given, training=False).examples
        found = task.predictions(logits, None)
        got = task.score(found, examples)
        tuned = task.tuned(found, examples)
        again = tuned.score(tuned.predictions(logits, None), examples)
        if thresholds:
            assert again == got
            continue
        for name in ("micro_f1", "macro_f1"):
            assert again[name] == pytest.approx(got[f"best_{name}"])
        assert got["best_macro_f1"] >= got["macro_f1"]
        best = [got[f"best_f1/{name}/threshold"] for name in task.label_names]
        np.testing.assert_allclose(tuned._thresholds_C, best)


def test_a_batch_pads_the_text_and_not_the_labels(tokenizer):
    given = rows(*GIVEN)
    encoded = made(tokenizer, given).encode(given, training=True)
    batch = next(Batches(encoded.items, (16,), 4, tokenizer.pad_id).train())
    assert batch["input_ids"].shape == (4, 16) and batch["label_set"].shape == (4, 3)
    assert batch["weights"].sum() == 3
    want = sorted([*sets(encoded), [0, 0, 0]])
    assert sorted(batch["label_set"].tolist()) == want
