"""Several classes, or none, for a text or for a pair of texts."""

import copy
from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np

from deberta_jax.data.tasks import scores
from deberta_jax.data.tasks.classification import Counts, Labelled
from deberta_jax.data.tasks.config import TaskConfig
from deberta_jax.data.tasks.encoded import Encoded, TaskTokenizer
from deberta_jax.data.tasks.labels import MISSING, label_text, present
from deberta_jax.data.tasks.sources import Row
from deberta_jax.errors import UserError

_YES = {"1", "true"}
_NO = {"0", "false"}


class MultiLabel(Labelled):
    """The task of `objective="multi_label"`: a logit for each label, each by its own sigmoid.

    `task.label` names a column with a list of labels, or with a text that `task.separator` parts.
    Where there is no such column, but one for each of `task.labels`, those hold 0 or 1.
    """

    target = "label_set"

    def __init__(self, config: TaskConfig, tokenizer: TaskTokenizer, train_rows: list[Row]):
        super().__init__(config, tokenizer, train_rows)
        thresholds = config.thresholds
        sizes = (0, 1, self.num_labels)
        if len(thresholds) not in sizes or not all(0 < t < 1 for t in thresholds):
            raise UserError(
                f"task.thresholds is {thresholds}; it has to hold one number between 0 and 1, or "
                f"one for each of the {self.num_labels} labels, or none"
            )
        self._thresholds_C = np.resize(np.array(thresholds or (0.5,)), self.num_labels)

    def _found(self, train_rows: list[Row]) -> Iterator[tuple[str, str]]:
        if self.config.labels and not _has(train_rows[0], self.config.label):
            return
        for row in train_rows:
            if row[self.config.label] is not None or MISSING not in self.config.skip_labels:
                for name in self._names(row, None):
                    yield name, row.where

    def _names(self, row: Row, counts: Counts | None) -> list[str]:
        """The labels of a row, each once."""
        column, separator = self.config.label, self.config.separator
        value = row[column]
        if isinstance(value, str) and separator:
            value = [part for part in value.split(separator) if part.strip()]
        if not isinstance(value, list):
            hint = (
                "a missing one is [] or, in a table, an empty cell"
                if value is None
                else ("task.separator says what parts the labels of a cell")
            )
            raise UserError(
                f"{row.where}: {column} has to hold a list of labels, not {value!r:.40} ({hint})"
            )
        names = [label_text(item, row.where, column, counts) for item in value]
        for name in names:
            present(name, row.where, column)
        if len(set(names)) < len(names) and counts is not None:
            counts["examples that have a label twice, read once"] += 1
        return list(dict.fromkeys(names))

    def _flags(self, row: Row) -> list[int]:
        """The indices of the labels whose own columns hold 1."""
        found = []
        for index, name in enumerate(self.labels.stated):
            text = label_text(row[name], row.where, name).lower()
            if text not in _YES | _NO:
                raise UserError(
                    f"{row.where}: {self.labels.names[index]} is {row[name]!r:.40}; the column of "
                    "a label has to hold 0 or 1"
                )
            if text in _YES:
                found.append(index)
        return found

    def _target(self, row: Row, counts: Counts) -> tuple[list[str], np.ndarray]:
        if not _has(row, self.config.label) and _has(row, self.labels.stated[0]):
            indices = self._flags(row)
        else:
            names = self._names(row, counts)
            indices = sorted({self.labels.index_of(name, row.where) for name in names})
        counts["examples without any label"] += not indices
        target_C = np.zeros(self.num_labels, np.float32)
        target_C[indices] = 1
        return [self.labels.names[index] for index in indices], target_C

    def predictions(self, logits: list[np.ndarray], inputs: Encoded) -> list[dict]:
        """The labels whose probability is at least their threshold, and all probabilities."""
        predictions = []
        for logits_C in np.asarray(logits, np.float64):
            shares_C = 0.5 * (1 + np.tanh(0.5 * logits_C))
            chosen = np.flatnonzero(shares_C >= self._thresholds_C)
            chances = dict(zip(self.labels.names, shares_C.round(6).tolist(), strict=True))
            predictions.append(
                {
                    "prediction": [self.labels.names[index] for index in chosen],
                    "probabilities": chances,
                }
            )
        return predictions

    def score(self, predictions: list[dict], examples: list[dict]) -> dict[str, float]:
        """The task's scores; beside them F1 with each label's best threshold, and those."""
        right_NC = self._matrix(example["label"] for example in examples)
        found_NC = self._matrix(prediction["prediction"] for prediction in predictions)
        means = scores.of_label_sets(self.config.scores, right_NC, found_NC)
        shares_NC, best_C = _shares(predictions), _best_thresholds(predictions, right_NC)
        best = scores.of_label_sets(("micro_f1", "macro_f1"), right_NC, shares_NC >= best_C)
        means |= {f"best_{name}": value for name, value in best.items()}
        named = zip(self.labels.names, best_C, strict=True)
        return means | {f"best_f1/{name}/threshold": float(value) for name, value in named}

    def tuned(self, predictions: list[dict], examples: list[dict]) -> Self:
        """Where `task.thresholds` is empty, the task with each label's best threshold there."""
        if self.config.thresholds:
            return self
        task = copy.copy(self)
        right_NC = self._matrix(example["label"] for example in examples)
        task._thresholds_C = _best_thresholds(predictions, right_NC)
        return task

    def _matrix(self, sets: Iterable[list[str]]) -> np.ndarray:
        index = {name: column for column, name in enumerate(self.labels.names)}
        rows = [[index[name] for name in names] for names in sets]
        matrix_NC = np.zeros((len(rows), self.num_labels), bool)
        for row, columns in enumerate(rows):
            matrix_NC[row, columns] = True
        return matrix_NC


def _has(row: Row, column: str) -> bool:
    return row.get(column, _has) is not _has


def _shares(predictions: list[dict]) -> np.ndarray:
    return np.array([[*prediction["probabilities"].values()] for prediction in predictions])


def _best_thresholds(predictions: list[dict], right_NC: np.ndarray) -> np.ndarray:
    columns = zip(_shares(predictions).T, right_NC.T, strict=True)
    return np.array([scores.best_f1_threshold(*column) for column in columns])
