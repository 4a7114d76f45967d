"""Tokenizers of released layouts against `transformers` itself: ids, pairs, special tokens."""

import io
import json
import random
import shutil

import numpy as np
import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import models, pre_tokenizers, trainers

from deberta_jax.data.tokenizer import Tokenizer, train_tokenizer, write_pretrained
from deberta_jax.errors import UserError
from deberta_jax.interop.tokenizers import load_tokenizer
from tests.segmentations import assert_same_but_for_ties

SPECIALS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
RELEASED_V3 = {"do_lower_case": False, "vocab_type": "spm"}
RELEASED_V1 = {"do_lower_case": False, "vocab_type": "gpt2"}

ODD_TEXTS = [
    "", " ", "   ", "\n", "\t \r\n", "hello", " hello", "  leading and trailing  ",
    "don't it's I'LL", "double  space\tand\r\nlines\n\nmore",
    "cafe\u0301 café", "\u0301", "a\u0301\u0302 b", "ẞ İ ŉ Ǆ", "ﬁ Ａ１ ① ™ ½", "日本 語。한국어",
    "Ünïcödé мир Мир ΣΑΣ ñ", "\u1100\u1161", "😀 smile😀😀 👩\u200d🚀",
    "👨\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 🇫🇷",
    "a\x00b\x00", "\x00", "\x1cfile\x1c\x1f", "del\x7f \x80\x85\x9f", "a\x0bb\x0cc",
    "\u200b a\u200bb \u200b", "a\u2028b\u2029c", "\xa0no\xa0break \xa0 ", "\ufeffbom\u2060",
    "\u3000ideo\u3000\u3000graphic ", "\u2000wide\u2001", "\U0010ffff\ufffe\ufdd0\ue000",
    "\u2581", "\u2581a", "\u2581\u2581a \u2581", "Ġa Ġ ĠĠ", "\u202eright\u202c to שלום left عربي",
    "[MASK]", "a [MASK] b[MASK]c  [MASK]  d", "[MASK] ", " [MASK]", "[[MASK]]", "[MASK",
    "[CLS] a [SEP]", "[PAD][UNK]", "[mask] [Mask]", "<mask> <s> </s>", "<extra> <Extra>x<extra>",
    "1234567890 3.14 -5 $9.99 #tag @you", "end.Start,next;(x) \"q\" — … ‘’ ¿?",
    "x" * 3000, "the " * 5000, "x" * 2500 + " y " * 2500, "ab\u0301" * 1000, "😀" * 500, "\n" * 999,
]  # fmt: skip

# Latin, controls, combining marks, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, Hangul jamo,
# punctuation and formats, arrows, CJK, Hangul, private use, full width, emoji, planes 1 to 16.
BLOCKS = [
    (0x20, 0x7F), (0x20, 0x7F), (0x00, 0x100), (0x100, 0x250), (0x300, 0x370), (0x370, 0x400),
    (0x400, 0x500), (0x590, 0x600), (0x600, 0x700), (0x900, 0x980), (0xE00, 0xE80),
    (0x1100, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2070), (0x2190, 0x2300), (0x3000, 0x3100),
    (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xE000, 0xF900), (0xF900, 0x10000), (0x1F300, 0x1FB00),
    (0x10000, 0x110000),
]  # fmt: skip
SCRIPTS = [
    "etaoinshrdlucmfw",
    "ETAOINS",
    "éüñcafe",
    "оеаинтс",
    "αεινος",
    "日本語中文",
    "한국어",
    "0123",
]


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="the parity extra is not installed")


def words():
    """The words, common ones first, of which training and test texts are made."""
    generator = random.Random(1)
    made = ["the", "hello", "don't", "it's", "[", "]", "(x)", "end.", "😀", "MASK", "cafe\u0301"]
    for number in range(400):
        letters = SCRIPTS[0] if number % 2 else generator.choice(SCRIPTS)
        made.append("".join(generator.choices(letters, k=generator.randint(1, 8))))
    return made


def sentences():
    generator = random.Random(2)
    weights = [1 / (rank + 1) for rank in range(len(words()))]
    for _ in range(800):
        yield " ".join(generator.choices(words(), weights, k=generator.randint(1, 12)))


def random_texts(seed, count=150):
    """Known words, special tokens and code points of many blocks, in any order."""
    generator = random.Random(seed)
    known = [*words(), *SPECIALS, "[MASK]", "<extra>", " ", "  ", "\t", "\n", "\u3000", "\u2581"]
    texts = []
    for _ in range(count):
        parts = []
        share = generator.random()
        for _ in range(generator.randint(0, 40)):
            if generator.random() < share:
                parts.append(generator.choice(known) + generator.choice(["", " ", " "]))
            else:
                parts.append(chr(generator.randrange(*generator.choice(BLOCKS))))
        texts.append("".join(parts))
    return texts


def sentencepiece_model(normalization="identity", **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences(), model_writer=model, model_type="unigram",
        vocab_size=700, hard_vocab_limit=False, normalization_rule_name=normalization,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]",
        eos_piece="[SEP]", unk_piece="[UNK]", num_threads=2, minloglevel=2, **options,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module")
def models_of():
    """The vocabulary files of each kind of checkpoint."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=800, show_progress=False, special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(sentences(), trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab = {**model["vocab"], "[MASK]": len(model["vocab"])}
    merges = "\n".join(["#version: 0.2", *map(" ".join, model["merges"])]) + "\n"
    return {
        "identity": {"spm.model": sentencepiece_model()},
        "nmt_nfkc": {"spm.model": sentencepiece_model("nmt_nfkc")},
        "symbols": {
            "spm.model": sentencepiece_model(
                user_defined_symbols=["<extra>"], control_symbols=["<s>"]
            )
        },
        "bpe": {"vocab.json": json.dumps(vocab).encode(), "merges.txt": merges.encode()},
    }


def write(directory, files, model_type, settings=None, **others):
    """Writes a checkpoint directory; `others` are JSON files without their suffix."""
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    others = {"config": {"model_type": model_type}, "tokenizer_config": settings, **others}
    for name, value in others.items():
        if value is not None:
            (directory / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return directory


def token(content, special=False, **flags):
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True, **flags}
    return {"content": content, "special": special, **flags}


MASK = token("[MASK]", True, lstrip=True, normalized=False)
ADDED_V3 = {str(number): token(piece, True) for number, piece in enumerate(SPECIALS)}


def check_parity(transformers, directory, seed):
    """Holds the directory's tokenizer, and what it saves, to transformers' one."""
    theirs = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ours = load_tokenizer(directory)
    texts = [*ODD_TEXTS, *random_texts(seed)]
    compare(ours, theirs, texts)
    ours.save(directory / "saved")
    again = transformers.AutoTokenizer.from_pretrained(directory / "saved", local_files_only=True)
    compare(load_tokenizer(directory / "saved"), again, texts[::5])
    compare(ours, again, texts[::5])
    return ours, theirs


def compare(ours, theirs, texts):
    pairs = texts[::-1]
    for add_special_tokens in (True, False):
        options = dict(add_special_tokens=add_special_tokens)
        want = theirs(texts, **options)["input_ids"]
        for text, ids, wanted in zip(texts, ours.encode_batch(texts, **options), want, strict=True):
            assert ids.dtype == np.int32 and ids.tolist() == wanted, ascii(text[:200])
        short = [(a, b) for a, b in zip(texts, pairs, strict=True) if len(a) + len(b) < 500]
        first, second = map(list, zip(*short, strict=True))
        want = theirs(first, second, **options)["input_ids"]
        actual = ours.encode_batch(first, second, **options)
        assert [ids.tolist() for ids in actual] == want
        for text in texts[:10]:
            assert ours.encode(text, **options).tolist() == theirs(text, **options)["input_ids"]
    for role in ("pad", "cls", "sep", "unk", "mask"):
        assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id"), role
    assert ours.vocab_size == len(theirs)
    assert {piece: token for token, piece in enumerate(ours.pieces)} == theirs.get_vocab()
    for text in texts[:60]:
        ids = ours.encode(text)
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids.tolist(), skip_special_tokens=skip)


SENTENCEPIECE_CASES = {
    "released": ("identity", RELEASED_V3, {}),
    "released with a normalizer": ("nmt_nfkc", RELEASED_V3, {}),
    "no settings": ("nmt_nfkc", None, {}),
    "lower case": ("nmt_nfkc", {"do_lower_case": True}, {}),
    "punctuation": ("identity", {"split_by_punct": True}, {}),
    "everything": (
        "identity",
        {"do_lower_case": True, "split_by_punct": True, "add_prefix_space": False},
        {},
    ),
    "special tokens as text": ("identity", {"split_special_tokens": True}, {}),
    "symbols in the model": ("symbols", RELEASED_V3, {}),
    "extra special tokens": (
        "symbols",
        {"additional_special_tokens": ["<extra>", "[mask]"], "bos_token": "[BOS]"},
        {},
    ),
    "older files": (
        "identity",
        {"unk_token": "[UNK]", "mask_token": {"__type": "AddedToken", **MASK}},
        {
            "added_tokens": {"[MASK]": "last", "<extra>": "after"},
            "special_tokens_map": {
                "cls_token": "[CLS]",
                "mask_token": {key: value for key, value in MASK.items() if key != "special"},
            },
        },
    ),
    "added tokens in the settings": (
        "nmt_nfkc",
        {
            "added_tokens_decoder": {**ADDED_V3, "last": MASK, "after": token("<extra>")},
            "do_lower_case": True,
            "mask_token": "[MASK]",
            "clean_up_tokenization_spaces": False,
        },
        {"added_tokens": {"never": 9}},
    ),
}


def with_ids(value, size):
    """`value` with "last" and "after" turned into the ids after the model's pieces."""
    names = {"last": size, "after": size + 1}
    if not isinstance(value, dict):
        return names.get(value, value) if isinstance(value, str) else value
    return {str(names.get(key, key)): with_ids(entry, size) for key, entry in value.items()}


@pytest.mark.parametrize("case", SENTENCEPIECE_CASES.values(), ids=SENTENCEPIECE_CASES.keys())
def test_sentencepiece_ids_are_those_of_transformers(case, models_of, transformers, tmp_path, seed):
    name, settings, others = case
    files = models_of[name]
    processor = sentencepiece.SentencePieceProcessor(model_proto=files["spm.model"])
    size = processor.get_piece_size()
    others = with_ids(others, size)
    write(tmp_path, files, "deberta-v2", with_ids(settings, size), **others)
    ours, _ = check_parity(transformers, tmp_path, seed)
    assert (ours.pad_id, ours.cls_id, ours.sep_id, ours.unk_id) == (0, 1, 2, 3)
    assert ours.mask_id >= size
    expected = [piece.startswith("\u2581") for piece in ours.pieces]
    assert ours.word_start_V.tolist() == expected and 50 < sum(expected) < ours.vocab_size


@pytest.mark.parametrize(
    "settings",
    [
        RELEASED_V1,
        {"add_prefix_space": True},
        {"tokenizer_class": "DebertaTokenizerFast", "added_tokens_decoder": {"last": MASK}},
    ],
    ids=["released", "prefix space", "added tokens in the settings"],
)
def test_byte_level_ids_are_those_of_transformers(
    settings, models_of, transformers, tmp_path, seed
):
    mask = json.loads(models_of["bpe"]["vocab.json"])["[MASK]"]
    write(tmp_path, models_of["bpe"], "deberta", with_ids(settings, mask))
    ours, _ = check_parity(transformers, tmp_path, seed)
    assert (ours.pad_id, ours.cls_id, ours.sep_id, ours.unk_id) == (0, 1, 2, 3)
    assert ours.mask_id == mask == ours.vocab_size - 1
    assert ours.encode("a", "b").tolist().count(ours.sep_id) == 3
    expected = [piece.startswith("Ġ") for piece in ours.pieces]
    assert ours.word_start_V.tolist() == expected and 50 < sum(expected) < ours.vocab_size


@pytest.mark.parametrize("kind", ["identity", "nmt_nfkc", "bpe"])
def test_what_transformers_saves(kind, models_of, transformers, tmp_path, seed):
    model_type = "deberta" if kind == "bpe" else "deberta-v2"
    settings = {"do_lower_case": True, "split_by_punct": True}
    source = write(tmp_path / "source", models_of[kind], model_type, settings)
    theirs = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    theirs.add_tokens(["<extra>"])
    theirs("a b", truncation=True, max_length=1)  # saved, and not to be honoured
    theirs.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy" / "spm.model").exists()
    ours, _ = check_parity(transformers, tmp_path / "copy", seed)
    assert ours.pieces[-1] == "<extra>"


def test_a_stored_normalizer_is_not_used(models_of, transformers, tmp_path, seed):
    source = write(tmp_path / "source", models_of["identity"], "deberta-v2", RELEASED_V3)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "copy")
    path = tmp_path / "copy" / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(stored), encoding="utf-8")
    check_parity(transformers, tmp_path / "copy", seed)


@pytest.mark.parametrize("kind", ["nmt_nfkc", "bpe"])
def test_a_tokenizer_of_no_class_is_taken_as_it_is(kind, models_of, transformers, tmp_path, seed):
    model_type = "deberta" if kind == "bpe" else "deberta-v2"
    source = write(tmp_path / "source", models_of[kind], model_type, {"do_lower_case": True})
    theirs = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    theirs.save_pretrained(tmp_path / "copy")
    path = tmp_path / "copy" / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["do_lower_case"] = False  # tokenizer.json alone decides
    path.write_text(json.dumps(settings), encoding="utf-8")
    stored = tmp_path / "copy" / "tokenizer.json"
    changed = json.loads(stored.read_text(encoding="utf-8"))
    changed["normalizer"] = {"type": "Lowercase"}
    stored.write_text(json.dumps(changed), encoding="utf-8")
    ours, _ = check_parity(transformers, tmp_path / "copy", seed)
    np.testing.assert_array_equal(ours.encode("HELLO"), ours.encode("hello"))


def test_our_own_export(transformers, tmp_path, seed):
    train_tokenizer(sentences(), 400, tmp_path / "model")
    tokenizer = Tokenizer(tmp_path / "model")
    write_pretrained(tokenizer, tmp_path / "out", model_max_length=64)
    ours, _ = check_parity(transformers, tmp_path / "out", seed)
    assert ours.mask_id == tokenizer.mask_id and ours.pieces == tokenizer.pieces
    np.testing.assert_array_equal(ours.word_start_V, tokenizer.word_start_V)
    np.testing.assert_array_equal(ours.unspaced_V, tokenizer.unspaced_V)
    for text in random_texts(seed):
        if "[" not in text:
            ids = ours.encode(text, add_special_tokens=False)
            assert_same_but_for_ties(ids.tolist(), tokenizer.encode(text).tolist(), tokenizer)


def test_special_tokens_pairs_and_decoding(models_of, tmp_path):
    ours = load_tokenizer(write(tmp_path, models_of["identity"], "deberta-v2", RELEASED_V3))
    plain = ours.encode("the hello", add_special_tokens=False).tolist()
    other = ours.encode("cafe\u0301", add_special_tokens=False).tolist()
    assert ours.encode("the hello").tolist() == [1, *plain, 2]
    assert ours.encode("the hello", "cafe\u0301").tolist() == [1, *plain, 2, *other, 2]
    assert ours.encode("the hello", "").tolist() == [1, *plain, 2, 2]
    assert ours.encode("[MASK]", add_special_tokens=False).tolist() == [ours.mask_id]
    assert ours.decode(ours.encode("the hello"), skip_special_tokens=True) == "the hello"
    assert ours.decode(np.array([1, *plain, ours.mask_id])).endswith("[MASK]")
    assert ours.encode_batch([]) == [] and ours.encode("").tolist() == [1, 2]
    with pytest.raises(ValueError, match="zip"):
        ours.encode_batch(["a", "b"], ["c"])


def test_unpaired_surrogates_are_refused(models_of, tmp_path):
    ours = load_tokenizer(write(tmp_path, models_of["bpe"], "deberta"))
    for arguments in (["a", "ab\ud83d"], None), (["a", "b"], ["c", "ab\ud83d"]):
        with pytest.raises(UserError, match=r"text 1 .* U\+D83D, at character 2"):
            ours.encode_batch(*arguments)
    assert ours.encode("ab\ud83d".encode("utf-8", "replace").decode()).size > 2


def test_without_any_config_the_files_tell(models_of, tmp_path):
    for name, model_type in (("identity", "deberta-v2"), ("bpe", "deberta")):
        directory = write(tmp_path / name, models_of[name], model_type)
        expected = load_tokenizer(directory)
        (directory / "config.json").unlink()
        actual = load_tokenizer(directory)
        for text in ODD_TEXTS[:40]:
            np.testing.assert_array_equal(actual.encode(text), expected.encode(text))
    shutil.move(tmp_path / "identity" / "spm.model", tmp_path / "identity" / "spiece.model")
    renamed = load_tokenizer(tmp_path / "identity")
    assert renamed.mask_id == renamed.vocab_size - 1
    renamed.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "spm.model").exists()


def test_saving_onto_itself_and_onto_another(models_of, tmp_path):
    spm = write(tmp_path / "spm", models_of["identity"], "deberta-v2", RELEASED_V3)
    bpe = write(tmp_path / "bpe", models_of["bpe"], "deberta", RELEASED_V1)
    load_tokenizer(spm).save(spm)
    assert load_tokenizer(spm).pieces == load_tokenizer(spm).pieces
    with pytest.raises(UserError, match=r"vocab\.json belongs to another tokenizer"):
        load_tokenizer(spm).save(bpe)


def test_what_is_missing_or_not_supported(models_of, tmp_path):
    with pytest.raises(UserError, match="absent does not exist"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no tokenizer; .*spm\.model, or vocab\.json"):
        load_tokenizer(write(tmp_path / "empty", {}, "deberta"))
    with pytest.raises(UserError, match=r"bpe_encoder\.bin is not.*vocab\.json and merges\.txt"):
        load_tokenizer(write(tmp_path / "own", {"bpe_encoder.bin": b""}, "deberta"))
    vocab = {"vocab.json": models_of["bpe"]["vocab.json"]}
    with pytest.raises(UserError, match=r"merges\.txt is missing"):
        load_tokenizer(write(tmp_path / "half", vocab, "deberta"))
    with pytest.raises(UserError, match=r"has to hold tokenizer\.json or spm\.model"):
        load_tokenizer(write(tmp_path / "other", models_of["bpe"], "deberta-v2"))
    settings = {"tokenizer_class": "BertTokenizerFast"}
    with pytest.raises(UserError, match="class BertTokenizer is not supported"):
        load_tokenizer(write(tmp_path / "bert", models_of["bpe"], "deberta", settings))
    with pytest.raises(UserError, match="has to name a mask_token"):
        write(tmp_path / "null", models_of["identity"], "deberta-v2", {"mask_token": None})
        load_tokenizer(tmp_path / "null")
    with pytest.raises(UserError, match=r"'\[MASK\]' has the id 5 among the added tokens"):
        write(tmp_path / "id", models_of["identity"], "deberta-v2", added_tokens={"[MASK]": 5})
        load_tokenizer(tmp_path / "id")


DAMAGES = {
    "spm.model": [b"", b"not a model", "half"],
    "vocab.json": [b"", b"[1]", b"{}", b'{"a": "b"}', b"\xff", "half"],
    "merges.txt": [b"a b c\n", b"zz yy\n", b"\xff", b"a b\n\nb c\n"],
    "tokenizer.json": [
        b"",
        b"{}",
        b"[]",
        b'{"model": 1}',
        b'{"model": {"vocab": [["a"]]}}',
        b'{"model": {"vocab": {}, "type": "WordPiece"}}',
        b'{"model": {"vocab": []}, "added_tokens": [1]}',
    ],
    "tokenizer_config.json": [
        b"{",
        b"[]",
        b'{"added_tokens_decoder": {"x": 1}}',
        b'{"extra_special_tokens": [1]}',
        b'{"cls_token": {"content": 1}}',
    ],
    "added_tokens.json": [b"{", b'{"a": "b"}', b'{"a": null}'],
    "special_tokens_map.json": [b"nul"],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_named(name, models_of, tmp_path):
    kinds = {"spm.model": ["identity"], "vocab.json": ["bpe"], "merges.txt": ["bpe"]}
    for kind in kinds.get(name, ["identity", "bpe"]):
        for damage in DAMAGES[name]:
            model_type = "deberta" if kind == "bpe" else "deberta-v2"
            directory = write(tmp_path / kind, models_of[kind], model_type)
            if damage == "half":
                whole = (directory / name).read_bytes()
                damage = whole[: len(whole) // 2]
            (directory / name).write_bytes(damage)
            with pytest.raises(UserError) as failure:
                load_tokenizer(directory)
            message = str(failure.value)
            assert name in message and str(tmp_path) in message and "\n" not in message
            (directory / name).unlink()


def test_a_model_of_another_type_or_cut_short_is_refused(models_of, tmp_path):
    proto = sentencepiece_model_pb2.ModelProto.FromString(models_of["identity"]["spm.model"])
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    with pytest.raises(UserError, match="has to be a unigram model"):
        load_tokenizer(write(tmp_path, {"spm.model": proto.SerializeToString()}, "deberta-v2"))
    proto.ClearField("trainer_spec")
    with pytest.raises(UserError, match="damaged, or no SentencePiece model"):
        load_tokenizer(write(tmp_path, {"spm.model": proto.SerializeToString()}, "deberta-v2"))
