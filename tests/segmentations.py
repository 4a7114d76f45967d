"""Two segmentations of one text by one SentencePiece model: equal, but for ties."""

import itertools

import pytest
import sentencepiece


def assert_same_but_for_ties(ids, others, tokenizer):
    """Asserts that `others` segments as `ids` does; only a tie may differ.

    A stretch of text can have two best segmentations ("l ll" and "ll l"), or two that float32 does
    not tell apart: the scores of the 2,000 characters that are encoded at a time add up to some
    -8,000, in steps of 5e-4. So stretches that differ must spell the same, and score that near.
    """
    score = sentencepiece.SentencePieceProcessor(model_file=tokenizer.path).get_score
    for stretches in _differing_stretches(list(ids), list(others), tokenizer.pieces):
        left, right = ("".join(tokenizer.pieces[token] for token in one) for one in stretches)
        assert left == right
        scores = [sum(map(score, stretch)) for stretch in stretches]
        assert scores[0] == pytest.approx(scores[1], abs=2e-3), stretches


def _differing_stretches(ids, others, pieces):
    """Where two segmentations of a text part, up to where both cut again: ([ids], [ids])."""
    ids, others = iter(ids), iter(others)
    for ours, theirs in itertools.zip_longest(ids, others):
        if ours == theirs:
            continue
        left, right = ([] if token is None else [token] for token in (ours, theirs))
        while True:
            lengths = [sum(len(pieces[token]) for token in stretch) for stretch in (left, right)]
            if lengths[0] == lengths[1]:
                break
            shorter, rest = (left, ids) if lengths[0] < lengths[1] else (right, others)
            if (token := next(rest, None)) is None:
                break
            shorter.append(token)
        yield left, right
