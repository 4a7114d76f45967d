"""Held-out sentences with one word masked, and what a masked model puts there."""

import re

import jax
import numpy as np

from deberta_jax.data.dataset import PreparedData
from deberta_jax.data.packed_text import VALIDATION

# A sentence for an example: long enough to say something, short enough for one line.
_SENTENCE_WORDS = (8, 22)


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
        text = tokenizer.decode(row["input_ids"][row["segment_ids"] == 1][1:-1])
        candidates = re.split(r"(?<=[.!?])\s+", text)[1:-1]  # the outer ones may be cut
        candidates = [s for s in candidates if _fits(len(s.split()))]
        if not candidates:
            continue
        words = tokenizer.encode(candidates[rng.integers(len(candidates))])
        ids = np.concatenate([[tokenizer.cls_id], words, [tokenizer.sep_id]])
        starts = np.append(tokenizer.word_start_V[ids[1:]], True)
        whole_words = [
            position
            for position in range(1, len(ids) - 1)
            if tokenizer.word_start_V[ids[position]]
            and (starts[position] or position == len(ids) - 2)
            and len(tokenizer.decode([ids[position]])) > 2
        ]
        if whole_words and len(ids) <= data.metadata.sequence_length:
            sentences.append((ids, whole_words[rng.integers(len(whole_words))]))
    return sentences


def _fits(words: int) -> bool:
    return _SENTENCE_WORDS[0] <= words <= _SENTENCE_WORDS[1]
