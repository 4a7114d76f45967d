"""Sentences to train a tokenizer on: cut from clean text, sampled evenly in one pass."""

import math
import random
import re
from collections.abc import Iterable, Iterator

from deberta_jax.data.tokenizer import MAX_SENTENCE_CHARACTERS

# A stop, whatever closes the quotation, and the blank after it.
_SENTENCE_END = re.compile(r"""(?<=[.!?…。！？])["'”’»)\]]*\s+|(?<=[。！？])""")


def split_sentences(text: str) -> Iterator[str]:
    """Cuts clean text after sentences, and long sentences between words.

    Every sentence is at most MAX_SENTENCE_CHARACTERS long, which SentencePiece can take.
    """
    start = 0
    for end in _ends(text):
        sentence = text[start:end].strip()
        start = end
        while len(sentence) > MAX_SENTENCE_CHARACTERS:
            cut = sentence.rfind(" ", 1, MAX_SENTENCE_CHARACTERS + 1)
            cut = cut if cut > 0 else MAX_SENTENCE_CHARACTERS
            yield sentence[:cut]
            sentence = sentence[cut:].lstrip()
        if sentence:
            yield sentence


def _ends(text: str) -> Iterator[int]:
    for match in _SENTENCE_END.finditer(text):
        yield match.end()
    yield len(text)


def reservoir_sample(items: Iterable[str], size: int, seed: int) -> list[str]:
    """An even sample of at most `size` items in one pass; all of them, in order, if they fit.

    Draws a number only for the items that enter the sample, so skipping the rest is cheap (Li's
    algorithm L).
    """
    generator = random.Random(seed)
    sample: list[str] = []
    weight = 1.0
    next_index = -1
    for index, item in enumerate(items):
        if index < size:
            sample.append(item)
            if index + 1 < size:
                continue
            next_index = index
        elif index == next_index:
            sample[int(generator.random() * size)] = item
        else:
            continue
        weight *= math.exp(math.log(1.0 - generator.random()) / size)
        skip = math.log(1.0 - generator.random()) / math.log1p(-weight)
        next_index += int(skip) + 1
    return sample
