"""Token streams of documents to sequences of one length."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from deberta_jax.data.packed_text import Sequence
from deberta_jax.data.tokenizer import CLS_ID, PAD_ID, SEP_ID
from deberta_jax.errors import UserError

MIN_SEQUENCE_LENGTH = 8
# Segment ids are stored as uint16; a run takes three positions at the least.
MAX_SEQUENCE_LENGTH = 1 << 16


class Chunk(NamedTuple):
    """Consecutive int32 tokens of a document, and whether the document ends with them."""

    tokens: np.ndarray
    ends_document: bool


def pack(chunks: Iterable[Chunk], sequence_length: int) -> Iterator[Sequence]:
    """Packs documents into sequences of `sequence_length` tokens, in order, none lost.

    A sequence holds runs `[CLS] tokens [SEP]`, numbered 1, 2, 3, ... in `segment_ids`; a run
    holds tokens of one document only. A document is cut only where a sequence is full; room for
    fewer than max(16, L // 32) tokens is left as padding, unless a whole rest fits. The result
    does not depend on how documents are cut into chunks.

    Raises:
        UserError: the length is out of range.
    """
    if not MIN_SEQUENCE_LENGTH <= sequence_length <= MAX_SEQUENCE_LENGTH:
        raise UserError(
            f"data.sequence_length={sequence_length}: it has to be "
            f"{MIN_SEQUENCE_LENGTH} to {MAX_SEQUENCE_LENGTH}"
        )
    page = _Page(sequence_length)
    minimum = max(16, sequence_length // 32)
    rest = np.empty(0, np.int32)
    for tokens, ends_document in chunks:
        rest = np.concatenate([rest, tokens])
        start = 0
        while len(rest) - start > page.room:
            if page.room >= minimum or page.is_empty:
                start += page.add(rest[start : start + page.room])
            yield page.turn()
        rest = rest[start:]
        if ends_document:
            page.add(rest)
            rest = rest[:0]
    # Tokens without a document's end, should the stream stop short, still make a run.
    page.add(rest)
    if not page.is_empty:
        yield page.turn()


@dataclasses.dataclass
class _Page:
    """The sequence being filled."""

    length: int

    def __post_init__(self):
        self._clear()

    def _clear(self) -> None:
        self.input_ids = np.full(self.length, PAD_ID, np.int32)
        self.segment_ids = np.zeros(self.length, np.uint16)
        self.used = 0
        self.runs = 0

    @property
    def is_empty(self) -> bool:
        return self.used == 0

    @property
    def room(self) -> int:
        """Tokens that another run could hold; negative where not even its frame fits."""
        return self.length - self.used - 2

    def add(self, tokens: np.ndarray) -> int:
        """Adds a run unless it would be empty, and returns its number of tokens."""
        if not len(tokens):
            return 0
        end = self.used + len(tokens) + 2
        self.runs += 1
        self.input_ids[self.used] = CLS_ID
        self.input_ids[self.used + 1 : end - 1] = tokens
        self.input_ids[end - 1] = SEP_ID
        self.segment_ids[self.used : end] = self.runs
        self.used = end
        return len(tokens)

    def turn(self) -> Sequence:
        """Hands out the sequence and begins the next."""
        full = Sequence(self.input_ids, self.segment_ids)
        self._clear()
        return full
