"""Scores against independent ones: formulas, torchmetrics, SQuAD's rules written out."""

import collections
import re
import string

import numpy as np
import pytest

from deberta_jax.data.tasks import scores
from deberta_jax.errors import UserError

TEXTS = [
    "the cat", "The Cat!", "a cat", "cat", "dog", "an old, grey cat", "grey old cat", "", "The",
    "12,000", "12000", "co-op", "coop", "Zürich  lake", "zürich lake",
]  # fmt: skip


def test_classes_by_their_formulas(seed):
    rng = np.random.default_rng(seed)
    labels, found = rng.integers(0, 2, 60), rng.integers(0, 2, 60)
    tp, tn = ((labels & found).sum(), ((1 - labels) & (1 - found)).sum())
    fp, fn = ((1 - labels) & found).sum(), (labels & (1 - found)).sum()
    got = scores.of_classes(("accuracy", "f1", "macro_f1", "matthews"), labels, found)
    f1 = 2 * tp / (2 * tp + fp + fn)
    other = 2 * tn / (2 * tn + fp + fn)
    assert got["accuracy"] == pytest.approx((tp + tn) / 60)
    assert got["f1"] == pytest.approx(f1)
    assert got["macro_f1"] == pytest.approx((f1 + other) / 2)
    matthews = (tp * tn - fp * fn) / np.sqrt(1.0 * (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert got["matthews"] == pytest.approx(matthews)


def test_f1_of_more_than_two_classes_is_the_mean_over_them(seed):
    rng = np.random.default_rng(seed)
    labels, found = rng.integers(0, 5, (2, 80))
    each = []
    for label in range(5):
        hits = np.sum((labels == label) & (found == label))
        each.append(2 * hits / (np.sum(labels == label) + np.sum(found == label)))
    got = scores.of_classes(("f1", "macro_f1"), labels, found, 5)
    assert got["f1"] == got["macro_f1"] == pytest.approx(np.mean(each))
    # Also where a set happens to hold two of them only.
    both, two = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    assert scores.of_classes(("f1",), both, two, 3)["f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert scores.of_classes(("f1",), both, two, 2)["f1"] == pytest.approx(2 / 3)


def test_what_f1_is_of_is_said():
    assert scores.meaning("f1", ("no", "yes")) == "f1 is that of the label 'yes', the second"
    assert "f1 of 3 classes is macro_f1" in scores.meaning("f1", ("a", "b", "c"))
    assert scores.meaning("accuracy", ("a", "b", "c")) == scores.meaning("f1", ()) == ""


def test_correlations_by_their_formulas(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    got = scores.of_numbers(("pearson", "spearman"), x, y)
    assert got["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    ranks = [np.argsort(np.argsort(v)) for v in (x, y)]
    assert got["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert scores.of_numbers(("pearson",), x, np.ones(40)) == {"pearson": 0.0}


def test_tags_are_scored_by_whole_spans():
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
    found = [["B-PER", "O", "O", "B-LOC"], ["B-ORG", "B-ORG"]]
    got = scores.of_tags(("precision", "recall", "f1", "accuracy"), right, found)
    assert got["precision"] == pytest.approx(2 / 4)  # LOC and the second ORG
    assert got["recall"] == pytest.approx(2 / 3)
    assert got["f1"] == pytest.approx(4 / 7)
    assert got["accuracy"] == pytest.approx(4 / 6)


def squad_by_the_script(answer, found):
    """SQuAD's evaluation script, its rules written out: (exact, F1) against one answer."""

    def tokens(text):
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    right, given = tokens(answer), tokens(found)
    left, shared = collections.Counter(right), 0
    for token in given:
        if left[token] > 0:
            left[token] -= 1
            shared += 1
    if not right or not given:
        return float(right == given), float(right == given)
    precision, recall = shared / len(given), shared / len(right)
    f1 = 0.0 if shared == 0 else 2 * precision * recall / (precision + recall)
    return float(right == given), f1


def test_answers_are_scored_as_by_squad_s_script(seed):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        answers = list(rng.choice([t for t in TEXTS if t not in ("", "The")], rng.integers(1, 4)))
        found = str(rng.choice(TEXTS))
        each = [squad_by_the_script(answer, found) for answer in answers]
        want = tuple(max(column) for column in zip(*each, strict=True))
        assert scores.answer_scores(answers, found) == pytest.approx(want)
    assert scores.answer_scores([], "") == (1.0, 1.0)  # no answer, and none found
    assert scores.answer_scores([], "cat") == (0.0, 0.0)


def test_answers_are_scored_as_by_torchmetrics(seed):
    text = pytest.importorskip("torchmetrics.text", reason="the parity extra is not installed")
    rng = np.random.default_rng(seed)
    filled = [t for t in TEXTS if t not in ("", "The")]
    answers = [list(rng.choice(filled, rng.integers(1, 4))) for _ in range(50)]
    found = list(rng.choice(filled, 50))
    theirs = text.SQuAD()(
        [{"prediction_text": str(t), "id": str(i)} for i, t in enumerate(found)],
        [
            {"answers": {"answer_start": [0] * len(a), "text": list(map(str, a))}, "id": str(i)}
            for i, a in enumerate(answers)
        ],
    )
    ours = scores.of_answers(answers, found)
    for name in ("exact_match", "f1"):
        assert 100 * ours[name] == pytest.approx(float(theirs[name]), rel=1e-5)


def test_the_best_threshold_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, 30).astype(float)  # some equal
    answered, unanswered = rng.random(30), rng.integers(0, 2, 30).astype(float)
    threshold, mean = scores.best_threshold(values, answered, unanswered)

    def at(t):
        return np.where(values <= t, answered, unanswered).mean()

    assert at(threshold) == pytest.approx(mean)
    assert mean == pytest.approx(max(at(t) for t in (*values, values.min() - 1)))


def test_a_score_that_there_is_not_is_named():
    with pytest.raises(UserError, match=r"task\.scores has 'bleu'; here it may have accuracy"):
        scores.check("classification", ("accuracy", "bleu"))
