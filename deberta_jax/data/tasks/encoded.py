"""What the tasks share: examples as the model reads them, and how texts are joined and cut."""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class TaskTokenizer(Protocol):
    """What the tasks ask of a tokenizer; `interop.tokenizers.PretrainedTokenizer` has it."""

    cls_id: int
    sep_id: int
    pad_id: int
    unk_id: int

    def encode(self, text: str, pair: str | None = None) -> np.ndarray: ...

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[np.ndarray]: ...

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]: ...


# Arrays of an item whose last axis is not its tokens, so that padding leaves it.
WITHOUT_TOKENS = ("label_set",)
# A scalar is what an item holds one of, such as its weight.
Item = dict[str, np.ndarray | np.generic]


class Encoded(NamedTuple):
    """A set of examples, ready for batches.

    Attributes:
        items: what goes to the device, each by name: `input_ids` and `segment_ids` (1 throughout)
            [n], or [C, n] for C choices; `weights` and the targets of the task. Training and
            measuring sets have targets; sets that are only predicted have none.
        details: what stays here of each item, for the task's own use.
        examples: what scores and prediction files need of each example; several items may belong
            to one.
        counts: what was left out or cut, by reason, for the user to read.
    """

    items: list[Item]
    details: list[Any]
    examples: list[dict[str, Any]]
    counts: collections.Counter[str]


def separators(tokenizer: TaskTokenizer) -> int:
    """[SEP]s between the texts of a pair: two in v1, one since."""
    return len(tokenizer.encode("", "")) - 2


def plain_ids(tokenizer: TaskTokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text without special tokens."""
    return tokenizer.encode_batch(texts, add_special_tokens=False)


def join(
    tokenizer: TaskTokenizer, first: np.ndarray, second: np.ndarray | None, between: int
) -> np.ndarray:
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP] with `between` [SEP]s: int32 [n]."""
    cls, sep = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
    parts = [cls, first]
    if second is not None:
        parts += [sep.repeat(between), second]
    return np.concatenate([*parts, sep]).astype(np.int32)


def cut(parts: Sequence[np.ndarray], limit: int) -> list[np.ndarray]:
    """The parts cut at their ends to `limit` tokens together, the longer one first."""
    lengths = [len(part) for part in parts]
    if sum(lengths) > limit:
        if len(parts) == 1:
            lengths = [limit]
        else:
            half = limit // 2
            short = min(lengths)
            longer = limit - short if short < half else limit - half
            shorter = limit - longer
            lengths = [longer, shorter] if lengths[0] >= lengths[1] else [shorter, longer]
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]


def matrix(rows: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """Rows of different lengths as one array, filled up at their ends: int32 [C, n]."""
    whole = np.full((len(rows), max(map(len, rows))), fill, np.int32)
    for index, row in enumerate(rows):
        whole[index, : len(row)] = row
    return whole
