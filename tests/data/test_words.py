"""Which tokens begin a word: against a loop over the tokens."""

import itertools

import numpy as np
import pytest

from deberta_jax.data.words import unspaced, word_starts

WITHOUT_BLANKS = tuple("我𠀀あカーｶ々ㄅไັລកိကབꀀᨠ")
WITH_BLANKS = (*"aéяعह한აአ1。，·๑▁😀", "", "<0xE4>")


def test_scripts_without_blanks():
    pieces = [f"{a}{b}" for a, b in itertools.product(("", "▁", "x", "。"), WITHOUT_BLANKS)]
    assert unspaced(pieces).all()
    assert not unspaced(WITH_BLANKS).any()


def words_by_loop(maskable_L, segments_L, begins_L):
    """The positions of each word, as lists."""
    words = []
    for at in np.flatnonzero(maskable_L):
        goes_on = at > 0 and maskable_L[at - 1] and segments_L[at] == segments_L[at - 1]
        if goes_on and not begins_L[at]:
            words[-1].append(at)
        else:
            words.append([at])
    return words


def starts_by_loop(maskable_L, segments_L, begins_L, unspaced_L, max_pieces, max_unspaced_pieces):
    starts_L = np.zeros(len(maskable_L), bool)
    for word in words_by_loop(maskable_L, segments_L, begins_L):
        has_letter = unspaced_L[word].any()
        longest = min(max_pieces, max_unspaced_pieces) if has_letter else max_pieces
        starts_L[word if len(word) > longest else word[:1]] = True
    return starts_L


@pytest.mark.parametrize("limits", [(32, 4), (5, 1), (3, 3), (4, 9), (1, 1)])
@pytest.mark.parametrize("blanks", [0.0, 0.02, 0.3])
def test_word_starts(limits, blanks, seed):
    generator = np.random.default_rng(seed)
    maskable_BL, begins_BL, unspaced_BL = (
        generator.random((50, 90)) < share for share in (0.97, blanks, blanks / 2)
    )
    unspaced_BL[::2] = False
    segments_BL = np.cumsum(generator.random((50, 90)) < 0.02, axis=1)
    batch = maskable_BL, segments_BL, begins_BL, unspaced_BL
    starts_BL = word_starts(*batch, max_pieces=limits[0], max_unspaced_pieces=limits[1])
    for row, arrays in enumerate(zip(*batch, strict=True)):
        np.testing.assert_array_equal(starts_BL[row], starts_by_loop(*arrays, *limits))


def test_nothing_to_mask():
    nothing = np.zeros((3, 8), bool)
    for shape in ((0, 8), (3, 8)):
        flags = [nothing[: shape[0]]] * 4
        assert not word_starts(*flags, max_pieces=2, max_unspaced_pieces=1).any()
