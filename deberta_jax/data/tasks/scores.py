"""Scores of predictions: each task's official ones, as shares of 1.

Classes and numbers by scikit-learn and SciPy, tags by seqeval; answers by SQuAD's own rules
(normalised exact match and token F1, the best over the reference answers), which no kept-up
library without a deep-learning framework offers.
"""

import collections
import re
import string
import warnings
from collections.abc import Sequence

import numpy as np

from deberta_jax.errors import UserError

# The scores of each objective's predictions.
KNOWN = {
    "classification": ("accuracy", "f1", "macro_f1", "matthews"),
    "multi_label": ("micro_f1", "macro_f1", "accuracy"),
    "regression": ("pearson", "spearman"),
    "multiple_choice": ("accuracy",),
    "span": ("f1", "exact_match"),
    "token_classification": ("f1", "precision", "recall", "accuracy"),
}
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = set(string.punctuation)


def of_classes(
    names: Sequence[str], labels: np.ndarray, predicted: np.ndarray, classes: int | None = None
) -> dict[str, float]:
    """Scores of classes, int [N]: accuracy, f1, macro_f1, matthews.

    Of two classes f1 is that of class 1; of more it is macro_f1. `classes` is how many there are;
    None: as many as occur.
    """
    from sklearn import metrics

    if classes is None:
        classes = 1 + int(max(np.max(labels, initial=1), np.max(predicted, initial=1)))

    def macro():
        return metrics.f1_score(labels, predicted, average="macro", zero_division=0)

    def f1():
        if classes > 2:
            return macro()
        return metrics.f1_score(labels == 1, predicted == 1, zero_division=0)

    known = {
        "accuracy": lambda: metrics.accuracy_score(labels, predicted),
        "f1": f1,
        "macro_f1": macro,
        "matthews": lambda: metrics.matthews_corrcoef(labels, predicted),
    }
    return {name: float(known[name]()) for name in names}


def of_label_sets(
    names: Sequence[str], labels: np.ndarray, predicted: np.ndarray
) -> dict[str, float]:
    """Scores of sets of labels, bool [N, C]: micro_f1, macro_f1 (over all labels), accuracy (of
    whole sets)."""
    columns = list(zip(labels.T, predicted.T, strict=True))
    values = {
        "micro_f1": _f1(labels.ravel(), predicted.ravel()),
        "macro_f1": float(np.mean([_f1(*column) for column in columns])),
        "accuracy": float(np.mean(np.all(labels == predicted, axis=1))),
    }
    return {name: values[name] for name in names}


def _f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN) of bools; 0 where nothing is there and nothing predicted."""
    wrong, right = np.sum(labels != predicted), np.sum(labels & predicted)
    return float(2 * right / (2 * right + wrong)) if right else 0.0


def best_f1_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the best F1 of one label: float [N], bool [N].

    A label is predicted where its probability is at least the threshold. It lies between two
    probabilities; the best one nearest 0.5 is taken. 0.5 where no example has the label.
    """
    if not labels.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ranked, right = probabilities[order], np.cumsum(labels[order])
    f1 = 2 * right / (np.arange(1, len(order) + 1) + labels.sum())
    following = np.append(ranked[1:], 0.0)
    f1 = np.where(ranked > following, f1, -1.0)  # equal ones are predicted together
    middles = (ranked + following) / 2
    best = np.flatnonzero(f1 == f1.max())
    return float(middles[best[np.argmin(np.abs(middles[best] - 0.5))]])


def meaning(name: str, label_names: Sequence[str]) -> str:
    """What a score of these labels is, where its name does not say it; else ""."""
    if name != "f1" or len(label_names) < 2:
        return ""
    if len(label_names) > 2:
        return f"f1 of {len(label_names)} classes is macro_f1, the mean over the classes"
    return f"f1 is that of the label {label_names[1]!r}, the second"


def of_numbers(names: Sequence[str], labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Scores of numbers, float [N]: pearson, spearman. Constant predictions correlate by 0."""
    from scipy import stats

    def correlation(function):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = float(function(labels, predicted)[0]) if len(labels) > 1 else 0.0
        return value if np.isfinite(value) else 0.0

    known = {
        "pearson": lambda: correlation(stats.pearsonr),
        "spearman": lambda: correlation(stats.spearmanr),
    }
    return {name: float(known[name]()) for name in names}


def of_tags(
    names: Sequence[str], labels: list[list[str]], predicted: list[list[str]]
) -> dict[str, float]:
    """Scores of whole spans (CoNLL's rules): f1, precision, recall; and accuracy of the tags."""
    from seqeval import metrics

    def quietly(function):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # spans that are nowhere predicted
            return function(labels, predicted)

    known = {
        "f1": lambda: quietly(metrics.f1_score),
        "precision": lambda: quietly(metrics.precision_score),
        "recall": lambda: quietly(metrics.recall_score),
        "accuracy": lambda: quietly(metrics.accuracy_score),
    }
    return {name: float(known[name]()) for name in names}


def check(objective: str, names: Sequence[str]) -> None:
    """Raises `UserError` unless all of `names` are scores of the objective's predictions."""
    known = KNOWN[objective]
    for name in names or ("",):
        if name not in known:
            raise UserError(f"task.scores has {name!r}; here it may have {', '.join(known)}")


def of_answers(answers: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """SQuAD's exact_match and f1 of predicted texts, each against its reference answers.

    A question without reference answers has none in its context, and "" is the right answer.
    """
    each = [answer_scores(right, text) for right, text in zip(answers, predicted, strict=True)]
    exact, f1 = np.mean(each, axis=0)
    return {"exact_match": float(exact), "f1": float(f1)}


def answer_scores(answers: Sequence[str], predicted: str) -> tuple[float, float]:
    """(exact match, F1) of one text, the best over the reference answers."""
    answers = [answer for answer in answers if normalized(answer)] or [""]
    exact = max(float(normalized(answer) == normalized(predicted)) for answer in answers)
    return exact, max(_token_f1(normalized(answer), normalized(predicted)) for answer in answers)


def _token_f1(answer: str, predicted: str) -> float:
    right, words = answer.split(), predicted.split()
    if not right or not words:
        return float(right == words)
    shared = sum((collections.Counter(right) & collections.Counter(words)).values())
    return 2 * shared / (len(right) + len(words))


def normalized(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces (SQuAD's evaluation script)."""
    text = "".join(letter for letter in text.lower() if letter not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def best_threshold(
    values: np.ndarray, answered: np.ndarray, unanswered: np.ndarray
) -> tuple[float, float]:
    """The no-answer threshold with the highest mean score, and that score (SQuAD 2.0).

    Args:
        values: float [N], by how much the score of "no answer" exceeds the best answer's.
        answered: float [N], what each question scores if it is answered.
        unanswered: float [N], what it scores if it is not.

    Returns:
        (threshold, mean): a question is answered where its value is at most the threshold.
    """
    order = np.argsort(values, kind="stable")
    gains = np.cumsum((answered - unanswered)[order])
    # Questions of one value are answered together or not at all.
    last = np.append(values[order][1:] != values[order][:-1], True)
    totals = np.append(0.0, gains[last]) + unanswered.sum()
    thresholds = np.append(values.min() - 1.0, values[order][last])
    best = int(np.argmax(totals))
    return float(thresholds[best]), float(totals[best] / len(values))
