"""Raw text to text worth learning: one line, composed characters, no decoration."""

import re
import unicodedata

_INVISIBLE = re.compile(
    "["
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # controls that are not blanks
    "\xad\u200b\u2060\ufeff"  # soft hyphen, zero-width space, word joiner, byte-order mark
    "\u200e\u200f\u202a-\u202e\u2066-\u2069"  # writing direction
    "\ue000-\uf8ff\U000f0000-\U0010ffff"  # private use
    "\ud800-\udfff\ufdd0-\ufdef\ufff9-\uffff"  # surrogates, noncharacters, replacement marks
    "]+"
)
# The zero-width joiners U+200C and U+200D stay: Persian, Indic scripts and emoji spell with them.
# SentencePiece writes a blank as U+2581, so in text that sign could only be mistaken for one.
_BLANK_SIGN = "\u2581"

_MARKDOWN = [
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in [
        (r"^[ \t]*(?:```|~~~).*$", ""),  # code fences
        (r"^[ \t]*([-*_=])(?:[ \t]*\1){2,}[ \t]*$", ""),  # rules, underlines of headings
        (r"^ {0,3}(?:>[ \t]?)+", ""),  # quotations
        (r"^ {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$", r"\1"),  # headings
        (r"^[ \t]*[-*+][ \t]+", ""),  # bullets
        # Links and images; the address may hold a pair of parentheses.
        (r"!?\[([^\]\[\n]*)\]\([^()\n]*(?:\([^()\n]*\)[^()\n]*)?\)", r"\1"),
        (r"(?<!\\)\[([^\]\[\n]+)\]\[[^\]\n]*\]", r"\1"),  # links by reference
        (r"`{1,3}([^`\n]+)`{1,3}", r"\1"),  # code
        (r"\\$", ""),  # hard line breaks
        # Emphasis, an opening or a closing mark at a time: its pair may be in another piece.
        (r"(?<![\\\w])[*_]{1,4}(?=\S)", ""),
        (r"(?<=[^\s\\])[*_]{1,4}(?!\w)", ""),
        (r"\\([!-/:-@\[-`{-~])", r"\1"),  # escapes
    ]
]


def clean(text: str, *, markdown: bool = False) -> str:
    """One line of NFC text without invisible characters, words parted by single spaces.

    Works on any piece of a document that was cut between words: cleaning the pieces and joining
    them with a space is cleaning the whole. With `markdown` the decoration goes too: emphasis,
    headings, bullets, rules, code fences; links leave their text.
    """
    text = _INVISIBLE.sub("", text).replace(_BLANK_SIGN, " ")
    if markdown:
        for pattern, replacement in _MARKDOWN:
            text = pattern.sub(replacement, text)
    return unicodedata.normalize("NFC", " ".join(text.split()))
