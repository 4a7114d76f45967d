"""Held-out sentences with one word masked, and what a masked model puts there."""

import re
from typing import NamedTuple

import jax
import numpy as np

from deberta_jax.data.dataset import PreparedData
from deberta_jax.data.packed_text import VALIDATION
from deberta_jax.data.tokenizer import Tokenizer
from deberta_jax.data.words import MAX_PIECES, word_starts

# A sentence for an example: long enough to say something, short enough for one line.
_SENTENCE_WORDS = (8, 22)
# What ends a sentence: with a blank after it, and in scripts without blanks.
_ENDS = re.compile(r"(?<=[.!?])\s+")
_ENDS_WITHOUT_BLANKS = re.compile(
    r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f\uff61\u17d4\u104b\u0f0d])"
)


def fill_mask_examples(
    logits, params, data: PreparedData, seed: int, count: int, top: int = 5
) -> list[str]:
    """A line for each sentence with its mask, and one with the word that was there and the guesses.

    Args:
        logits: (params, batch) -> [B, P, V] at the batch's `masked_positions`.
        params: what it takes.
        data: whose held-out text the sentences are from.
        seed: of the choice of sentences.
        count: how many.
        top: guesses shown of each.
    """
    tokenizer = data.tokenizer
    batch, chosen = masked_batch(data, np.random.default_rng(seed), count)
    if not chosen:
        return []
    logits_BV = np.asarray(jax.jit(logits)(params, batch)[:, 0], np.float32)
    logits_BV = logits_BV[:, : tokenizer.mask_id]  # [MASK] and spare rows are no guesses
    lines = []
    for (ids, position), logits_V in zip(chosen, logits_BV, strict=True):
        probabilities_V = np.exp(logits_V - logits_V.max())
        probabilities_V /= probabilities_V.sum()
        guesses = ", ".join(
            f"{tokenizer.decode([token])} {100 * probabilities_V[token]:.0f}%"
            for token in np.argsort(-logits_V)[:top]
        )
        before, after = tokenizer.decode(ids[1:position]), tokenizer.decode(ids[position + 1 : -1])
        lines.append(f"{before} [MASK] {after}\n  was: {tokenizer.decode([ids[position]])}")
        lines[-1] += f"; guesses: {guesses}"
    return lines


def masked_batch(data: PreparedData, rng, count: int):
    """(batch, sentences): held-out sentences with one word masked, a row each.

    The sentences are (ids with [CLS] and [SEP], position of the word), [] where there are none.
    """
    tokenizer, length = data.tokenizer, data.metadata.sequence_length
    chosen = _masked_sentences(data, rng, count)
    batch = {
        "input_ids": np.full((len(chosen), length), tokenizer.pad_id, np.int32),
        "segment_ids": np.zeros((len(chosen), length), np.int32),
        "position_ids": np.tile(np.arange(length, dtype=np.int32), (len(chosen), 1)),
        "masked_positions": np.array([[position] for _, position in chosen], np.int32),
    }
    for row, (ids, position) in enumerate(chosen):
        batch["input_ids"][row, : len(ids)] = ids
        batch["input_ids"][row, position] = tokenizer.mask_id
        batch["segment_ids"][row, : len(ids)] = 1
    return batch, chosen


def _masked_sentences(data: PreparedData, rng, count: int) -> list[tuple[np.ndarray, int]]:
    """(ids with [CLS] and [SEP], position of a one-token word), from all over the held-out text."""
    tokenizer, source = data.tokenizer, data.source(VALIDATION)
    sentences: list[tuple[np.ndarray, int]] = []
    for record in rng.permutation(len(source)):
        if len(sentences) == count:
            break
        row = source[int(record)]
        ids = row["input_ids"][row["segment_ids"] == 1][1:-1]
        found = _sentence(tokenizer, ids, rng)
        if found is None:
            continue
        ids = np.concatenate([[tokenizer.cls_id], found.ids, [tokenizer.sep_id]])
        whole_words = [1 + word for word in _one_token_words(tokenizer, found)]
        if whole_words and len(ids) <= data.metadata.sequence_length:
            sentences.append((ids, whole_words[rng.integers(len(whole_words))]))
    return sentences


class _Sentence(NamedTuple):
    """Its tokens, and which of them begin a word: int [L], bool [L]."""

    ids: np.ndarray
    starts: np.ndarray


def _sentence(tokenizer: Tokenizer, ids: np.ndarray, rng) -> _Sentence | None:
    """One of the sentences of a document's tokens; None where none suits.

    Of text without blanks in which nothing ends a sentence, a stretch of words.
    """
    if not len(ids):
        return None
    text = tokenizer.decode(ids)
    spaced = _has_blanks(tokenizer, ids, text)
    parts = re.split(_ENDS if spaced else _ENDS_WITHOUT_BLANKS, text)
    candidates = [part for part in parts if part][1:-1]  # the outer ones may be cut
    if spaced:
        candidates = [s for s in candidates if _fits(len(s.split()))]
        if not candidates:
            return None
        words = tokenizer.encode(candidates[rng.integers(len(candidates))])
        return _Sentence(words, _starts(tokenizer, words))
    tokens = [tokenizer.encode(candidate) for candidate in candidates]
    sentences = [_Sentence(one, _starts(tokenizer, one)) for one in tokens]
    sentences = [one for one in sentences if _fits(int(one.starts.sum()))]
    if sentences:
        return sentences[rng.integers(len(sentences))]
    starts = _starts(tokenizer, ids)
    (words,) = np.nonzero(starts)
    if len(words) < _SENTENCE_WORDS[0]:
        return None
    first = rng.integers(len(words) - _SENTENCE_WORDS[0] + 1)
    stretch = words[first : first + _SENTENCE_WORDS[1] + 1]
    cut = slice(stretch[0], stretch[-1])
    return _Sentence(ids[cut], starts[cut])


def _has_blanks(tokenizer: Tokenizer, ids: np.ndarray, text: str) -> bool:
    """Whether blanks part the words: not in Chinese or Thai, nor in base64 or DNA."""
    return tokenizer.unspaced_V[ids].mean() < 0.5 and len(text.split()) * MAX_PIECES >= len(ids)


def _starts(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """bool [L]: the tokens that begin a word, as masking counts words."""
    return word_starts(
        ~tokenizer.is_special_V[ids][None], np.ones((1, len(ids)), int),
        tokenizer.word_start_V[ids][None], tokenizer.unspaced_V[ids][None],
    )[0]  # fmt: skip


def _one_token_words(tokenizer: Tokenizer, sentence: _Sentence) -> list[int]:
    """Positions of the words of one token that say something."""
    ids, ends = sentence.ids, np.append(sentence.starts[1:], True)
    return [
        int(position)
        for position in np.flatnonzero(sentence.starts & ends)
        if len(tokenizer.decode([ids[position]])) > 2 or tokenizer.unspaced_V[ids[position]]
    ]


def _fits(words: int) -> bool:
    return _SENTENCE_WORDS[0] <= words <= _SENTENCE_WORDS[1]
