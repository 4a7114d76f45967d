"""Extractive question answering: where in a context a question's answer stands."""

import collections
from typing import Any, NamedTuple

import numpy as np

from deberta_jax.data.tasks import encoded, scores
from deberta_jax.data.tasks.config import TaskConfig
from deberta_jax.data.tasks.encoded import Encoded, Item, TaskTokenizer
from deberta_jax.data.tasks.labels import refuse_skipping, text_of
from deberta_jax.data.tasks.sources import Row
from deberta_jax.data.tasks.task import Task
from deberta_jax.errors import UserError

# What `no answer` points at: the first token, [CLS].
NOWHERE = 0
# In the order of `scores.answer_scores`.
_SCORES = ("exact_match", "f1")


class Window(NamedTuple):
    """What stays on the host of one window of a context.

    Attributes:
        example: the question it belongs to.
        first: position in the input of the window's first token of the context.
        spans_N2: characters of each of those tokens.
    """

    example: int
    first: int
    spans_N2: np.ndarray


class SpanExtraction(Task):
    """The task of `objective="span"`: for every token, whether the answer starts and ends there.

    `task.texts` name the question and the context; `task.label` the answers: a list of {"text",
    "answer_start"}, or TFDS's dictionary of two lists. A question without answers, or whose
    `is_impossible` is true, has none in its context. A context too long for one input is read in
    windows that overlap by `task.stride` tokens.
    """

    num_labels = 2

    def __init__(self, config: TaskConfig, tokenizer: TaskTokenizer, train_rows: list[Row]):
        """Raises `UserError` where no room is left for a context."""
        refuse_skipping(config)
        self.config, self._tokenizer = config, tokenizer
        self._between = encoded.separators(tokenizer)
        self._unanswerable = any(not answers_of(row, config.label) for row in train_rows)
        if len(config.texts) != 2:
            raise UserError(f"task.texts is {config.texts}; it must name question and context")
        room = config.max_length - config.max_question_length - 2 - self._between
        if not 0 <= config.stride < room:
            raise UserError(
                f"task.stride {config.stride} must be less than the {room} tokens of a context "
                "that task.max_length leaves beside task.max_question_length"
            )

    def encode(self, rows: list[Row], training: bool, labelled: bool = True) -> Encoded:
        """Examples for the model; see `Classification.encode`.

        A training question whose answer is not in its context, where the file says it is, is left
        out and counted. An answer that begins or ends inside a token takes the whole token.
        """
        counts: collections.Counter[str] = collections.Counter()
        questions, contexts = (
            [text_of(row, column) for row in rows] for column in self.config.texts
        )
        question_ids = encoded.plain_ids(self._tokenizer, questions)
        distinct = list(dict.fromkeys(contexts))
        encodings = self._tokenizer.encode_with_offsets(distinct)
        encoding_of = dict(zip(distinct, encodings, strict=True))
        items, details = [], []
        examples: list[dict[str, Any]] = []
        for index, row in enumerate(rows):
            question, context = question_ids[index], contexts[index]
            answers = answers_of(row, self.config.label) if labelled else []
            target = _characters(answers, context) if training else None
            empty = not questions[index].strip() or not context.strip()
            counts["examples with an empty text" + ", left out" * training] += empty
            lost = training and bool(answers) and target is None
            counts["answers that are not in their context, left out"] += lost
            if lost or (training and empty):
                continue
            cut = len(question) > self.config.max_question_length
            counts["questions cut to task.max_question_length"] += cut
            question = question[: self.config.max_question_length]
            example = {"id": row.get("id", index), "context": context}
            if labelled:
                example["answers"] = [answer["text"] for answer in answers]
            windows = self._windows(question, encoding_of[context], len(examples))
            counts["windows beyond the first of a context"] += len(windows) - 1
            for item, window in windows:
                if labelled:
                    item |= _targets(window, target)
                items.append(item)
                details.append(window)
            examples.append(example)
        return Encoded(items, details, examples, counts)

    def _windows(
        self, question: np.ndarray, encoding: tuple[np.ndarray, np.ndarray], example: int
    ) -> list[tuple[Item, Window]]:
        """(item, `Window`) of every window of a context, whose (ids, spans) `encoding` holds."""
        context, spans_N2 = encoding
        room = self.config.max_length - len(question) - 2 - self._between
        starts = [0]
        while starts[-1] + room < len(context):
            starts.append(starts[-1] + room - self.config.stride)
        first, windows = 1 + len(question) + self._between, []
        for start in starts:
            part = context[start : start + room]
            ids = encoded.join(self._tokenizer, question, part, self._between)
            item: Item = {"input_ids": ids, "segment_ids": np.ones_like(ids)}
            windows.append((item, Window(example, first, spans_N2[start : start + room])))
        return windows

    def predictions(self, logits: list[np.ndarray], inputs: Encoded) -> list[dict]:
        """The best span of each question over all of its windows.

        `no_answer` is by how much [CLS] outdoes it, in its least sure window.
        """
        best: list[Any] = [(-np.inf, "")] * len(inputs.examples)
        nowhere = np.full(len(inputs.examples), np.inf)
        for logits_L2, window in zip(logits, inputs.details, strict=True):
            example = window.example
            start_N, end_N = _context_logits(logits_L2, window)
            nowhere[example] = min(nowhere[example], float(logits_L2[NOWHERE].sum()))
            for width in range(min(self.config.max_answer_length, len(start_N))):
                sums = start_N[: len(start_N) - width] + end_N[width:]
                start = int(np.argmax(sums))
                if sums[start] > best[example][0]:
                    first = window.spans_N2[start, 0]
                    last = window.spans_N2[start + width, 1]
                    best[example] = (
                        float(sums[start]),
                        inputs.examples[example]["context"][first:last],
                    )
        predictions = []
        for (score, text), null in zip(best, nowhere, strict=True):
            margin = round(null - score, 6) if np.isfinite(score) else 1e6
            predictions.append({"prediction": text, "no_answer": margin})
        if self._unanswerable:
            for prediction in predictions:
                prediction["answer"] = (
                    "" if prediction["no_answer"] > 0 else prediction["prediction"]
                )
        return predictions

    def score(self, predictions: list[dict], examples: list[dict]) -> dict[str, float]:
        """SQuAD's scores; with unanswerable questions, those of the best threshold too."""
        answers = [example["answers"] for example in examples]
        if not self._unanswerable:
            means = scores.of_answers(answers, [p["prediction"] for p in predictions])
            return {name: means[name] for name in self.config.scores}
        means = scores.of_answers(answers, [p["answer"] for p in predictions])
        means = {name: means[name] for name in self.config.scores}
        margins = np.array([p["no_answer"] for p in predictions])
        pairs = zip(answers, predictions, strict=True)
        answered = np.array([scores.answer_scores(a, p["prediction"]) for a, p in pairs])
        unanswered = np.array([scores.answer_scores(a, "") for a in answers])
        for column, name in enumerate(_SCORES):
            threshold, mean = scores.best_threshold(
                margins, answered[:, column], unanswered[:, column]
            )
            means |= {f"best_{name}": mean, f"best_{name}_threshold": threshold}
        return means


def answers_of(row: Row, column: str) -> list[dict]:
    """The reference answers of a question: [{"text", "answer_start"}]; none where there are none.

    Raises:
        UserError: they are in no form that is known.
    """
    impossible = row.get("is_impossible")
    if impossible not in (None, False, True, 0, 1):
        raise UserError(f"{row.where}: is_impossible is {impossible!r:.40}; it is true or false")
    if impossible:
        return []
    answers = row[column]
    try:
        if isinstance(answers, dict):
            pairs = zip(answers["text"], answers["answer_start"], strict=True)
            answers = [{"text": text, "answer_start": start} for text, start in pairs]
        answers = [{"text": a["text"], "answer_start": a["answer_start"]} for a in answers]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{row.where}: {column} has to hold a list of {{'text', 'answer_start'}} ({error!r})"
        ) from error
    for answer in answers:
        text, start = answer.values()
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            raise UserError(
                f"{row.where}: an answer is {answer}; its text is a text and its answer_start the "
                "number of a character"
            )
    return answers


def _characters(answers: list[dict], context: str) -> tuple[int, int] | None:
    """First and last character, plus one, of the first answer; None where it is not there."""
    if not answers:
        return None
    text, start = answers[0]["text"], answers[0]["answer_start"]
    there = bool(text.strip()) and start >= 0 and context[start : start + len(text)] == text
    return (start, start + len(text)) if there else None


def _targets(window: Window, target: tuple[int, int] | None) -> Item:
    """First and last token of the answer at characters `target`; [CLS] if the window cuts it."""
    start = end = NOWHERE
    spans_N2 = window.spans_N2
    if target and len(spans_N2) and spans_N2[0, 0] <= target[0] and target[1] <= spans_N2[-1, 1]:
        touching = np.flatnonzero((spans_N2[:, 1] > target[0]) & (spans_N2[:, 0] < target[1]))
        if len(touching):
            start, end = window.first + touching[0], window.first + touching[-1]
    return {"starts": np.int32(start), "ends": np.int32(end), "weights": np.float32(1)}


def _context_logits(logits_L2: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """(start logits, end logits) of the tokens of the context."""
    stop = window.first + len(window.spans_N2)
    return logits_L2[window.first : stop, 0], logits_L2[window.first : stop, 1]
