"""A class, or a number, for a text or for a pair of texts."""

import abc
import collections
from collections.abc import Iterator
from typing import Any

import numpy as np

from deberta_jax.data.tasks import encoded, scores
from deberta_jax.data.tasks.config import TaskConfig
from deberta_jax.data.tasks.encoded import Encoded, Item, TaskTokenizer
from deberta_jax.data.tasks.labels import (
    Labels,
    label_text,
    number_of,
    present,
    text_of,
    without_skipped,
)
from deberta_jax.data.tasks.sources import Row
from deberta_jax.data.tasks.task import Task
from deberta_jax.errors import UserError

Counts = collections.Counter[str]


class TextOrPair(Task, abc.ABC):
    """What tasks on a text or a pair of texts share: the inputs, without their targets.

    Attributes:
        target: the name of an item's target.
    """

    target = "labels"

    def __init__(self, config: TaskConfig, tokenizer: TaskTokenizer):
        if len(config.texts) not in (1, 2):
            raise UserError(f"task.texts is {config.texts}; it must name one column, or two")
        self.config, self._tokenizer = config, tokenizer
        self._between = encoded.separators(tokenizer)

    def encode(self, rows: list[Row], training: bool, labelled: bool = True) -> Encoded:
        """Examples for the model; see `Encoded`.

        Args:
            rows: the examples.
            training: an example with an empty text is left out, and counted; where they are
                measured or predicted, every example stays.
            labelled: whether they have labels to read.

        Raises:
            UserError: a column is missing, or a label is missing or none of the task's.
        """
        counts: Counts = collections.Counter()
        if labelled:
            rows = without_skipped(rows, self.config, counts)
        texts = [[text_of(row, column) for column in self.config.texts] for row in rows]
        empty = [not all(text.strip() for text in group) for group in texts]
        counts["examples with an empty text" + ", left out" * training] = sum(empty)
        if training:
            rows = [row for row, gone in zip(rows, empty, strict=True) if not gone]
            texts = [group for group, gone in zip(texts, empty, strict=True) if not gone]
        columns = [
            encoded.plain_ids(self._tokenizer, [group[index] for group in texts])
            for index in range(len(self.config.texts))
        ]
        limit = self.config.max_length - 2 - self._between * (len(columns) - 1)
        items, examples = [], []
        for index, row in enumerate(rows):
            parts = [column[index] for column in columns]
            kept = encoded.cut(parts, limit)
            counts["inputs cut to task.max_length"] += sum(map(len, kept)) < sum(map(len, parts))
            second = kept[1] if len(kept) == 2 else None
            ids = encoded.join(self._tokenizer, kept[0], second, self._between)
            item: Item = {"input_ids": ids, "segment_ids": np.ones_like(ids)}
            example = {"id": row.get("id|idx|index|uid", index)}
            if labelled:
                example["label"], item[self.target] = self._target(row, counts)
                item["weights"] = np.float32(1)
            items.append(item)
            examples.append(example)
        return Encoded(items, [None] * len(items), examples, counts)

    @abc.abstractmethod
    def _target(self, row: Row, counts: Counts) -> tuple[Any, np.generic | np.ndarray]:
        """(the label as it is shown, and as the model learns it)."""


class Labelled(TextOrPair):
    """A task on a text or a pair whose labels are `task.labels`, or those of the examples."""

    def __init__(self, config: TaskConfig, tokenizer: TaskTokenizer, train_rows: list[Row]):
        """Takes the labels from `config`, or else from the training examples."""
        super().__init__(config, tokenizer)
        self.labels = Labels.of(config, self._found(train_rows))
        self.label_names, self.stated_labels = self.labels.names, self.labels.stated
        self.num_labels = len(self.labels.names)

    @abc.abstractmethod
    def _found(self, train_rows: list[Row]) -> Iterator[tuple[str, str]]:
        """(label, file and line) of every label of the training examples."""


class Classification(Labelled):
    """The task of `objective="classification"`: the model gives a logit for each label."""

    def _found(self, train_rows: list[Row]) -> Iterator[tuple[str, str]]:
        column = self.config.label
        for row in train_rows:
            yield label_text(row[column], row.where, column), row.where

    def _target(self, row: Row, counts: Counts) -> tuple[str, np.int32]:
        column = self.config.label
        name = present(label_text(row[column], row.where, column, counts), row.where, column)
        index = self.labels.index_of(name, row.where)
        return self.labels.names[index], np.int32(index)

    def predictions(self, logits: list[np.ndarray], inputs: Encoded) -> list[dict]:
        """What the model's outputs [labels] of each item say of each example."""
        predictions = []
        for row in np.asarray(logits, np.float64):
            shares = np.exp(row - row.max())
            shares /= shares.sum()
            chances = dict(zip(self.labels.names, shares.round(6).tolist(), strict=True))
            predictions.append(
                {"prediction": self.labels.names[row.argmax()], "probabilities": chances}
            )
        return predictions

    def score(self, predictions: list[dict], examples: list[dict]) -> dict[str, float]:
        """The task's scores of predictions, which are in the examples' order."""
        indices = {name: index for index, name in enumerate(self.labels.names)}
        return scores.of_classes(
            self.config.scores,
            np.array([indices[example["label"]] for example in examples]),
            np.array([indices[prediction["prediction"]] for prediction in predictions]),
            self.num_labels,
        )


class Regression(TextOrPair):
    """The task of `objective="regression"`: the model gives a number."""

    label_names = stated_labels = ("value",)

    def __init__(self, config: TaskConfig, tokenizer: TaskTokenizer, train_rows: list[Row]):
        del train_rows
        super().__init__(config, tokenizer)

    def _target(self, row: Row, counts: Counts) -> tuple[float, np.float32]:
        value = number_of(row, self.config.label)
        return value, np.float32(value)

    def predictions(self, logits: list[np.ndarray], inputs: Encoded) -> list[dict]:
        """The number that the model gives for each example."""
        return [{"prediction": round(float(row[0]), 6)} for row in logits]

    def score(self, predictions: list[dict], examples: list[dict]) -> dict[str, float]:
        """The task's scores of predictions, which are in the examples' order."""
        return scores.of_numbers(
            self.config.scores,
            np.array([example["label"] for example in examples]),
            np.array([prediction["prediction"] for prediction in predictions]),
        )
