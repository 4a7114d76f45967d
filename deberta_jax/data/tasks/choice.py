"""Multiple choice: which of several texts goes best with a context."""

import collections

import numpy as np

from deberta_jax.data.tasks import encoded, scores
from deberta_jax.data.tasks.config import TaskConfig
from deberta_jax.data.tasks.encoded import Encoded, Item, TaskTokenizer
from deberta_jax.data.tasks.labels import label_text, text_of, without_skipped
from deberta_jax.data.tasks.sources import Row
from deberta_jax.data.tasks.task import Task
from deberta_jax.errors import UserError


class MultipleChoice(Task):
    """The task of `objective="multiple_choice"`: a logit for each choice.

    A choice is read as a pair: the first of `task.texts` and, after the second one if there is one,
    the choice. So the context is what is cut where an input is too long.
    """

    def __init__(self, config: TaskConfig, tokenizer: TaskTokenizer, train_rows: list[Row]):
        del train_rows
        if len(config.texts) not in (1, 2):
            raise UserError(f"task.texts is {config.texts}; it must name one column, or two")
        self.config, self._tokenizer = config, tokenizer
        self._between = encoded.separators(tokenizer)
        self._count = 0  # choices of the first example; 0 before it is read

    def encode(self, rows: list[Row], training: bool, labelled: bool = True) -> Encoded:
        """Examples for the model; see `Classification.encode`.

        Raises:
            UserError: a column is missing, a row has more or fewer choices than the first one, or
                its label names none of them.
        """
        counts: collections.Counter[str] = collections.Counter()
        kept, texts = [], []
        if labelled:
            rows = without_skipped(rows, self.config, counts)
        for row in rows:
            context, *question = (text_of(row, column) for column in self.config.texts)
            choices = self._choices(row)
            empty = not context.strip() or not all(choice.strip() for choice in choices)
            counts["examples with an empty text" + ", left out" * training] += empty
            if not (training and empty):
                kept.append(row)
                texts.append((context, [" ".join([*question, choice]) for choice in choices]))
        # A context is encoded once, however many questions it has.
        distinct = list(dict.fromkeys(context for context, _ in texts))
        ids_of = dict(zip(distinct, encoded.plain_ids(self._tokenizer, distinct), strict=True))
        answers = iter(encoded.plain_ids(self._tokenizer, [c for _, group in texts for c in group]))
        limit = self.config.max_length - 2 - self._between
        items, examples = [], []
        for index, (row, (context, choices)) in enumerate(zip(kept, texts, strict=True)):
            inputs = []
            for _ in choices:
                parts = ids_of[context], next(answers)
                first, second = encoded.cut(parts, limit)
                counts["inputs cut to task.max_length"] += len(first) < len(parts[0])
                inputs.append(encoded.join(self._tokenizer, first, second, self._between))
            item: Item = {
                "input_ids": encoded.matrix(inputs, self._tokenizer.pad_id),
                "segment_ids": encoded.matrix([np.ones_like(ids) for ids in inputs], 0),
            }
            example = {"id": row.get("id|idx|index|example_id", index)}
            if labelled:
                example["label"] = self._right(row, len(choices))
                item["labels"] = np.int32(example["label"])
                item["weights"] = np.float32(1)
            items.append(item)
            examples.append(example)
        return Encoded(items, [None] * len(items), examples, counts)

    def _choices(self, row: Row) -> list[str]:
        columns = self.config.choices
        choices = row[columns[0]] if len(columns) == 1 else [text_of(row, c) for c in columns]
        if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
            raise UserError(f"{row.where}: {columns[0]} has to hold a list of texts")
        self._count = self._count or len(choices)
        if len(choices) != self._count or len(choices) < 2:
            raise UserError(
                f"{row.where}: {len(choices)} choices; there have to be {max(2, self._count)}, as "
                "in the first example"
            )
        return choices

    def _right(self, row: Row, count: int) -> int:
        """The right choice, from 0: files give a number from 0, or a letter from A."""
        label = label_text(row[self.config.label], row.where, self.config.label)
        if label in self.config.choices:  # the name of its column
            return self.config.choices.index(label)
        letters = [chr(ord("A") + position) for position in range(count)]
        position = letters.index(label) if label in letters else -1
        position = int(label) if label.isascii() and label.isdecimal() else position
        if not 0 <= position < count:
            raise UserError(
                f"{row.where}: {self.config.label} is {label!r}; it has to be 0 to {count - 1}, or "
                f"A to {letters[-1]}"
            )
        return position

    def predictions(self, logits: list[np.ndarray], inputs: Encoded) -> list[dict]:
        """The choice with the highest logit, from 0."""
        return [{"prediction": int(np.argmax(row))} for row in logits]

    def score(self, predictions: list[dict], examples: list[dict]) -> dict[str, float]:
        return scores.of_classes(
            self.config.scores,
            np.array([example["label"] for example in examples]),
            np.array([prediction["prediction"] for prediction in predictions]),
        )
