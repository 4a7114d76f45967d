"""Token classification: a tag for every word."""

import collections
import itertools

import numpy as np

from deberta_jax.data.tasks import encoded, scores
from deberta_jax.data.tasks.config import TaskConfig
from deberta_jax.data.tasks.encoded import Encoded, Item, TaskTokenizer
from deberta_jax.data.tasks.labels import Labels, label_text, present, refuse_skipping
from deberta_jax.data.tasks.sources import Row
from deberta_jax.data.tasks.task import Task
from deberta_jax.errors import UserError

# The tag of a word that an input cut short leaves out, and of none of a span.
OUTSIDE = "O"


class TokenClassification(Task):
    """The task of `objective="token_classification"`: a logit for each tag at every token.

    `task.texts` names the column with the list of words, `task.label` the one with their tags. A
    word's tag is read at its first token; its other tokens teach nothing.
    """

    def __init__(self, config: TaskConfig, tokenizer: TaskTokenizer, train_rows: list[Row]):
        if len(config.texts) != 1:
            raise UserError(f"task.texts is {config.texts}; it must name the column of the words")
        refuse_skipping(config)
        self.config, self._tokenizer = config, tokenizer
        tags = (
            (label_text(tag, row.where, config.label), row.where)
            for row in train_rows
            for tag in dict.fromkeys(_listed(row, config.label))
        )
        self.labels = Labels.of(config, tags)
        self.label_names, self.stated_labels = self.labels.names, self.labels.stated
        self.num_labels = len(self.labels.names)

    def encode(self, rows: list[Row], training: bool, labelled: bool = True) -> Encoded:
        """Examples for the model; see `Classification.encode`. `details` are the first tokens.

        Raises:
            UserError: a column is missing, a tag is none of the task's, or words and tags are not
                equally many.
        """
        counts: collections.Counter[str] = collections.Counter()
        sentences = [_listed(row, self.config.texts[0]) for row in rows]
        # A blank before every word, the first one too: a v1 vocabulary tells words by it.
        words = [f" {word}" for sentence in sentences for word in sentence]
        pieces = iter(encoded.plain_ids(self._tokenizer, words))
        unknown = np.array([self._tokenizer.unk_id], np.int32)
        items, details, examples = [], [], []
        for index, (row, sentence) in enumerate(zip(rows, sentences, strict=True)):
            ids = [next(pieces) for _ in sentence]
            if not sentence:
                counts["examples with an empty text" + ", left out" * training] += 1
                if training:
                    continue
            ids = [piece if len(piece) else unknown for piece in ids]
            firsts = 1 + np.array([0, *itertools.accumulate(map(len, ids))][: len(ids)], int)
            joined = np.concatenate([*ids, np.zeros(0, np.int32)])
            (kept,) = encoded.cut([joined], self.config.max_length - 2)
            counts["inputs cut to task.max_length"] += len(kept) < len(joined)
            firsts = firsts[firsts <= len(kept)]
            whole = encoded.join(self._tokenizer, kept, None, 1)
            item: Item = {"input_ids": whole, "segment_ids": np.ones_like(whole)}
            example = {"id": row.get("id", index), "words": sentence}
            if labelled:
                example["label"], targets = self._tags(row, sentence, counts)
                labels = np.zeros(len(whole), np.int32)
                weights = np.zeros(len(whole), np.float32)
                labels[firsts] = targets[: len(firsts)]
                weights[firsts] = 1
                item |= {"labels": labels, "weights": weights}
            items.append(item)
            details.append(firsts)
            examples.append(example)
        return Encoded(items, details, examples, counts)

    def _tags(
        self, row: Row, words: list[str], counts: collections.Counter[str]
    ) -> tuple[list[str], np.ndarray]:
        column = self.config.label
        tags = _listed(row, column)
        if len(tags) != len(words):
            raise UserError(f"{row.where}: {len(words)} words and {len(tags)} tags")
        names = [label_text(tag, row.where, column, counts) for tag in tags]
        indices = [
            self.labels.index_of(present(name, row.where, column), row.where) for name in names
        ]
        return [self.labels.names[index] for index in indices], np.array(indices, np.int32)

    def predictions(self, logits: list[np.ndarray], inputs: Encoded) -> list[dict]:
        """A tag for each word; words that were cut off are outside of every span."""
        predictions = []
        for logits_LC, firsts, example in zip(logits, inputs.details, inputs.examples, strict=True):
            tags = [self.labels.names[index] for index in logits_LC[firsts].argmax(-1)]
            predictions.append(
                {"prediction": tags + [OUTSIDE] * (len(example["words"]) - len(tags))}
            )
        return predictions

    def score(self, predictions: list[dict], examples: list[dict]) -> dict[str, float]:
        return scores.of_tags(
            self.config.scores,
            [example["label"] for example in examples],
            [prediction["prediction"] for prediction in predictions],
        )


def _listed(row: Row, column: str) -> list[str]:
    values = row[column]
    if not isinstance(values, list):
        raise UserError(f"{row.where}: {column} has to hold a list of texts, not {values!r:.40}")
    other = next((value for value in values if not isinstance(value, str)), "")
    if other != "":
        raise UserError(f"{row.where}: {column} has to hold a list of texts; one is {other!r:.40}")
    return values
