"""Masking of texts in many scripts, with and without blanks: what is predicted, where, how long.

The texts are made up, and drawn anew. One tokenizer of 1,200 pieces is trained on all of them.
"""

import base64
import dataclasses
import itertools
import random
import secrets
import string

import numpy as np
import pytest

from deberta_jax.data.config import MaskingConfig
from deberta_jax.data.masking import Masker, mask_batch
from deberta_jax.data.tokenizer import Tokenizer, train_tokenizer
from deberta_jax.preparation.packing import Chunk, pack
from deberta_jax.preparation.sentences import split_sentences
from tests.data.test_masking import targets

LENGTH = 128
RATE = MaskingConfig().rate

# Letters to make words of. Those of scripts with blanks come first.
LETTERS = {
    "English": string.ascii_lowercase,
    "Arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "Hindi": "अआइईउऊएओकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसहािीुूेैोौं",
    "Korean": "가나다라마바사아자차카타파하고노도로모보소오조초코토포호구누두루",
    "Chinese": "我们今天去学校看书他喜欢吃苹果气很好北京是中国的首都老师说明雨孩子",
    "Japanese": "あいうえおかきくけこさしたちつてとなにのはひふまみもやアイカキサシ日本語学生人",
    "Thai": "กขคงจชซดตถทนบปผพฟมยรลวสหอะาิีึืุูเแโใไ่้",
    "Khmer": "កខគឃងចឆជឈញដឋឌឍណតថទធនបផពភមយរលវសហឡអាិីឹឺុូួេែៃោ",
}
SPACED = ("English", "Arabic", "Hindi", "Korean", "code")
UNSPACED = ("Chinese", "Japanese", "Thai", "Khmer")
# What is no word in any script: nothing to part it at.
ENDLESS = ("base64", "DNA", "one long word")
KINDS = (*SPACED, *UNSPACED, *ENDLESS)


def words_of(kind, rng):
    """Words that a text of this kind is made of; few, so that pieces longer than a letter pay."""
    longest = 3 if kind in ("Korean", "Chinese", "Japanese") else 8
    return ["".join(rng.choices(LETTERS[kind], k=rng.randint(1, longest))) for _ in range(150)]


def code(rng):
    names = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 8))) for _ in range(20)]
    lines = []
    for _ in range(40):
        a, b, c, d = rng.choices(names, k=4)
        lines.append(
            rng.choice((f"{a}.{b}({c}, {d}[{rng.randint(0, 99)}])", f"if {a} >= {b}: return {c}"))
        )
    return " ".join(lines)


def document(kind, words, rng):
    if kind == "code":
        return code(rng)
    if kind == "base64":
        return base64.b64encode(rng.randbytes(900)).decode()
    if kind == "DNA":
        return "".join(rng.choices("ACGT", k=2000))
    if kind == "one long word":
        return "".join(rng.choices(string.ascii_lowercase, k=5000))
    blank, stop = (" ", ". ") if kind in SPACED else ("", "。" if kind != "Thai" else " ")
    sentences = (blank.join(rng.choices(words, k=rng.randint(4, 25))) for _ in range(15))
    return stop.join(sentences)


@pytest.fixture(scope="module")
def texts():
    """The documents of each kind."""
    seed = secrets.randbelow(2**31)
    print(f"seed of the texts = {seed}")
    rng, made = random.Random(seed), {}
    for kind in KINDS:
        words = words_of(kind, rng) if kind in LETTERS else ()
        made[kind] = [document(kind, words, rng) for _ in range(15)]
    return made


@pytest.fixture(scope="module")
def tokenizer(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "spm.model"
    some = itertools.chain.from_iterable(documents[:5] for documents in texts.values())
    sentences = [sentence for text in some for sentence in split_sentences(text)]
    train_tokenizer(sentences, 1200, path, character_coverage=1.0)
    return Tokenizer(path)


def packed(documents, length=LENGTH):
    """(ids, segment ids), int32 [B, L], of the ids of documents, as `prepare` packs them."""
    rows = list(pack((Chunk(ids, True) for ids in documents), length))
    ids = np.stack([row.input_ids for row in rows]).astype(np.int32)
    return ids, np.stack([row.segment_ids for row in rows]).astype(np.int32)


def how_often(tokenizer, ids, segments, seed, steps=150):
    """float [B, L]: the share of the steps in which each token was a target."""
    masker, counts = Masker(MaskingConfig(), tokenizer, seed), np.zeros(ids.shape)
    text = {"input_ids": ids, "segment_ids": segments}
    for step in range(steps):
        counts += targets(ids, masker(text, step, 0))
    return counts / steps


@pytest.mark.parametrize("kind", KINDS)
def test_every_position_is_predicted_as_often(kind, texts, tokenizer, seed):
    ids, segments = packed(tokenizer.encode_batch(texts[kind]))
    share, ordinary = how_often(tokenizer, ids, segments, seed), ~tokenizer.is_special_V[ids]
    assert share.sum() / ordinary.sum() == pytest.approx(RATE, rel=0.02)
    by_position = share.sum(0) / np.maximum(ordinary.sum(0), 1)
    # Spans that lose their tail favour a row's beginning, a little where words have many pieces.
    for part in (*np.split(by_position[1:-7], 8), by_position[1:9]):
        assert part.mean() == pytest.approx(RATE, rel=0.3 if kind in SPACED else 0.1)


def test_every_script_has_its_share(texts, tokenizer, seed):
    pairs = [(kind, text) for kind, documents in texts.items() for text in documents]
    random.Random(seed).shuffle(pairs)
    documents = tokenizer.encode_batch([text for _, text in pairs])
    # How documents are packed depends on their lengths alone, so their kinds can be packed alike.
    kinds = [
        np.full(len(ids), 4 + KINDS.index(kind))
        for (kind, _), ids in zip(pairs, documents, strict=True)
    ]
    ids, segments = packed(documents)
    kind_BL, _ = packed(kinds)
    share, ordinary = how_often(tokenizer, ids, segments, seed, 50), ~tokenizer.is_special_V[ids]
    for number, kind in enumerate(KINDS, start=4):
        own = ordinary & (kind_BL == number)
        assert share[own].mean() == pytest.approx(RATE, rel=0.08), kind


@pytest.mark.parametrize("kind", [*UNSPACED, *ENDLESS])
def test_spans_are_one_to_three_pieces(kind, texts, tokenizer, seed):
    """With few targets, spans rarely touch, so runs of targets are spans."""
    ids, segments = packed(tokenizer.encode_batch(texts[kind]), length=2048)
    config, counts = MaskingConfig(rate=0.02), np.zeros(10)
    for step in range(max(2, 10**6 // ids.size)):
        chosen = targets(ids, mask_batch(ids, segments, config, tokenizer, seed=seed, step=step))
        edges = np.diff(np.pad(chosen, ((0, 0), (1, 1))).astype(int), axis=1)
        lengths = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
        counts += np.bincount(np.minimum(lengths, 9), minlength=10)
    wanted = 1 / np.arange(1, 4)
    np.testing.assert_allclose(counts[1:4] / counts.sum(), wanted / wanted.sum(), atol=0.04)
    assert counts[9] / counts.sum() < 0.01


@pytest.mark.parametrize("kind", ["Chinese", "Japanese", "Thai"])
def test_text_segmented_beforehand_is_masked_in_whole_words(kind, texts, tokenizer, seed):
    """As for the Japanese models that are published: a blank between words, then the pieces."""
    rng = random.Random(seed)
    words = words_of(kind, rng)
    short = [word for word in words if len(tokenizer.encode(word)) <= 4]
    # Room for all of the last span, which else may lose its tail.
    usual = MaskingConfig(num_predictions=LENGTH)
    segmented = dataclasses.replace(usual, max_unspaced_pieces=32)
    for vocabulary, config in ((words, segmented), (short, usual)):
        documents = [" ".join(rng.choices(vocabulary, k=400)) for _ in range(10)]
        ids, segments = packed(tokenizer.encode_batch(documents))
        inside = ~tokenizer.is_special_V[ids] & ~tokenizer.word_start_V[ids]
        inside[:, 1:] &= ~tokenizer.is_special_V[ids[:, :-1]]
        assert inside.mean() > 0.1
        chosen = targets(ids, mask_batch(ids, segments, config, tokenizer, seed=seed, step=0))
        rows, columns = np.nonzero(inside)
        np.testing.assert_array_equal(chosen[rows, columns], chosen[rows, columns - 1])


def test_a_block_of_rows_is_a_slice_of_the_batch(texts, tokenizer, seed):
    """Rows of any script, long words at their ends and beginnings."""
    documents = tokenizer.encode_batch([text for kind in KINDS for text in texts[kind][:3]])
    ids, segments = packed(documents, length=64)
    config = MaskingConfig()
    whole = mask_batch(ids, segments, config, tokenizer, seed=seed, step=9)
    for start, end in ((0, 7), (7, 8), (8, len(ids))):
        block = mask_batch(
            ids[start:end],
            segments[start:end],
            config,
            tokenizer,
            seed=seed,
            step=9,
            first_row=start,
        )
        for name, values in block.items():
            np.testing.assert_array_equal(values, whole[name][start:end])
