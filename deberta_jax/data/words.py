"""Words in pieces: which pieces belong to one word, also where a text has no blanks."""

import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

# The longest word in pieces. Of Shakespeare's words, joined by dashes and in a vocabulary of 6,000,
# the longest has 25.
MAX_PIECES = 32
# Likewise in a script that has no blanks between words: those of text that was segmented into words
# beforehand are rarely longer, sentences rarely that short.
MAX_UNSPACED_PIECES = 4

# How Unicode's names of letters begin, in scripts that have no blanks between words. Hangul is not
# among them: Korean has blanks.
_UNSPACED_SCRIPTS = (
    "AHOM|BALINESE|BOPOMOFO|CJK|HALFWIDTH KATAKANA|HENTAIGANA|HIRAGANA|IDEOGRAPHIC|JAVANESE"
    "|KATAKANA|KHMER|LAO|MYANMAR|NEW TAI LUE|NUSHU|TAI LE|TAI THAM|TAI VIET|TANGUT|THAI|TIBETAN|YI"
)
_UNSPACED_NAME = re.compile(rf"({_UNSPACED_SCRIPTS})\b")


def unspaced(pieces: Sequence[str]) -> np.ndarray:
    """bool [V]: the pieces with a letter of a script that has no blanks between words.

    Punctuation is no letter: it belongs to the word before it, as in other scripts.
    """
    return np.array([any(map(_is_unspaced, piece)) for piece in pieces], bool)


@functools.cache
def _is_unspaced(character: str) -> bool:
    is_letter = unicodedata.category(character)[0] in "LM"  # marks are letters of Thai and others
    return is_letter and bool(_UNSPACED_NAME.match(unicodedata.name(character, "")))


def word_starts(
    maskable_BL: np.ndarray,
    segment_ids_BL: np.ndarray,
    begins_BL: np.ndarray,
    unspaced_BL: np.ndarray,
    *,
    max_pieces: int = MAX_PIECES,
    max_unspaced_pieces: int = MAX_UNSPACED_PIECES,
) -> np.ndarray:
    """bool [B, L]: the tokens that begin a word.

    A word is what blanks delimit, in one segment and one run of maskable tokens. One that is
    longer than a word can be, such as a sentence of Chinese or a line of base64, is no word: each
    of its pieces is one.

    Args:
        maskable_BL: bool [B, L], False for special tokens.
        segment_ids_BL: int [B, L].
        begins_BL: bool [B, L], tokens with a blank before them.
        unspaced_BL: bool [B, L], tokens of a script without blanks between words.
        max_pieces: the longest word, in pieces.
        max_unspaced_pieces: likewise, of a word that holds a token of such a script.
    """
    inside_BL = np.zeros(maskable_BL.shape, bool)
    inside_BL[:, 1:] = segment_ids_BL[:, 1:] == segment_ids_BL[:, :-1]
    inside_BL[:, 1:] &= maskable_BL[:, 1:] & maskable_BL[:, :-1]
    inside_BL &= ~begins_BL
    starts_BL = maskable_BL & ~inside_BL
    # Every token that is not inside a word opens an interval, special ones too; so an interval
    # from a word's start holds that word and nothing else.
    (starts_W,) = np.nonzero(~inside_BL.ravel())
    lengths_W = np.diff(starts_W, append=inside_BL.size)
    long_W = lengths_W > max_pieces
    if max_unspaced_pieces < max_pieces and unspaced_BL.any():
        unspaced_W = np.logical_or.reduceat(unspaced_BL.ravel(), starts_W)
        long_W |= unspaced_W & (lengths_W > max_unspaced_pieces)
    if long_W.any():
        starts_BL |= np.repeat(long_W, lengths_W).reshape(starts_BL.shape)
    return starts_BL
