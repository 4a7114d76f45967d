import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.data.config import DataConfig
from deberta_jax.data.dataset import load
from deberta_jax.data.tokenizer import Tokenizer
from deberta_jax.errors import UserError
from deberta_jax.preparation.hold_out import HoldOut
from deberta_jax.preparation.pipeline import prepare
from tests.data.conftest import COMEDIES

SYLLABLES = ["lo", "rem", "ip", "sum", "do", "lor", "sit", "a", "met", "con", "sec", "te", "tur"]


def silent(line):
    """Takes lines of progress nowhere."""


def made_up_text(generator, length):
    """`length` words, every fifth or so the last of its sentence."""
    words = ("".join(generator.choices(SYLLABLES, k=generator.randint(1, 4)))
             for _ in range(length))  # fmt: skip
    return " ".join(word + "." * (generator.random() < 0.2) for word in words)


def write_corpus(directory, seed, documents=40, name="text.jsonl"):
    generator = random.Random(seed)
    texts = [made_up_text(generator, generator.randint(100, 400)) for _ in range(documents)]
    path = directory / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path, texts


def small(corpus, **changes):
    settings = {"vocab_size": 60, "sequence_length": 32, "workers": 1, **changes}
    return DataConfig(corpus=str(corpus), **settings)


def contents(directory):
    """Digests of all that was made, TFDS's own descriptions aside."""
    wanted = [*directory.glob("**/*array_record*"), *directory.glob("tokenizer/*"),
              directory / "unigram_counts.npy", directory / "metadata.json"]  # fmt: skip
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in wanted
    }


def runs(prepared, split):
    """The text of every run of a split."""
    source = prepared.source(split)
    for record in source:
        ids, segments = record["input_ids"], record["segment_ids"]
        for number in range(1, segments.max() + 1):
            yield prepared.tokenizer.decode(ids[segments == number])


def test_what_is_prepared(prepared):
    found = prepared.metadata
    assert found.splits["train"].documents == 7 and found.splits["validation"].documents == 1
    assert found.vocab_size == prepared.tokenizer.vocab_size == 2001
    assert found.tokenizer_sha256 == prepared.tokenizer.sha256
    assert found.settings["corpus"] == COMEDIES.corpus and found.settings["seed"] == 5
    assert not {"dir", "workers", "prefetch"} & found.settings.keys()
    counts = np.zeros(2001, np.int64)
    for split in ("train", "validation"):
        source = prepared.source(split)
        record = source[len(source) - 1]
        assert record["input_ids"].shape == record["segment_ids"].shape == (64,)
        assert record["input_ids"].dtype == np.int32
        tokens = np.concatenate([record["input_ids"] for record in source])
        positions = sum(np.count_nonzero(record["segment_ids"]) for record in source)
        framed = np.isin(tokens, [0, 1, 2]).sum()
        assert len(source) == found.splits[split].sequences
        assert positions == found.splits[split].positions
        assert len(tokens) - framed == found.splits[split].tokens
        if split == "train":
            counts = np.bincount(tokens, minlength=2001)
    counts[[0, 1, 2, 3]] = 0
    np.testing.assert_array_equal(prepared.unigram_counts, counts)
    assert prepared.unigram_counts.dtype == np.int64


def test_every_document_lands_in_one_split_whole(tmp_path, seed):
    path, texts = write_corpus(tmp_path, seed)
    out = tmp_path / "out"
    made = prepare(small(path, sequence_length=65536, seed=seed), out, log=silent)
    prepared = load(out)
    found = {split: list(runs(prepared, split)) for split in ("train", "validation")}
    assert sorted(found["train"] + found["validation"]) == sorted(texts)
    assert len(found["validation"]) == made.splits["validation"].documents
    assert 1 <= len(found["validation"]) <= 12


def test_a_repeated_run_and_any_worker_count_give_the_same_bytes(tmp_path, seed):
    path, _ = write_corpus(tmp_path, seed, documents=30)
    line = f"**A** very _long_ text: {made_up_text(random.Random(seed), 500)}  \n"
    (tmp_path / "long.md").write_text(line * 1000)
    corpus = f"{path},{tmp_path}/long.md"
    for name, workers in (("one", 1), ("again", 1), ("three", 3)):
        config = small(corpus, workers=workers, tokenizer_sentences=500)
        prepare(config, tmp_path / name, log=silent)
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "again") == contents(tmp_path / "three")
    assert len(one) >= 6


def test_prepared_data_is_reused(comedies_dir, tmp_path):
    lines = []
    before = contents(comedies_dir)
    start = time.monotonic()
    elsewhere = dataclasses.replace(COMEDIES, workers=2, dir="x", prefetch=9)
    made = prepare(elsewhere, comedies_dir, log=lines.append)
    assert time.monotonic() - start < 1
    assert made == load(comedies_dir).metadata and contents(comedies_dir) == before
    assert len(lines) == 1 and "prepared already" in lines[0]


def test_other_settings_are_refused_and_overwritten_on_request(tmp_path, seed):
    path, _ = write_corpus(tmp_path, seed)
    out = tmp_path / "out"
    prepare(small(path, seed=1), out, log=silent)
    other = small(path, sequence_length=48, vocab_size=50, seed=2)
    with pytest.raises(UserError) as failure:
        prepare(other, out, log=silent)
    message = str(failure.value)
    assert "\n" not in message and "--overwrite" in message
    for part in (
        "data.sequence_length: prepared with 32, asked for 48",
        "data.seed: prepared with 1, asked for 2",
        "data.vocab_size: prepared with 60",
    ):
        assert part in message
    assert "text_field" not in message
    assert load(out).metadata.sequence_length == 32
    (out / "mine.txt").write_text("keep")
    prepare(other, out, overwrite=True, log=silent)
    prepared = load(out)
    assert prepared.metadata.sequence_length == 48
    assert prepared.source("train")[0]["input_ids"].shape == (48,)
    assert (out / "mine.txt").read_text() == "keep"


def test_an_interrupted_run_is_redone(tmp_path, seed):
    path, _ = write_corpus(tmp_path, seed)
    expected, out = tmp_path / "expected", tmp_path / "out"
    prepare(small(path), expected, log=silent)

    class Interrupted(Exception):
        pass

    def stop_at(line):
        if line.startswith("tokenizing validation"):
            raise Interrupted

    with pytest.raises(Interrupted):
        prepare(small(path), out, log=stop_at)
    assert not out.exists()
    with pytest.raises(UserError, match=r"run python -m deberta_jax.prepare"):
        load(out)
    prepare(small(path), out, log=silent)
    assert contents(out) == contents(expected)
    # Made anew in vain, it stays what it was.
    with pytest.raises(Interrupted):
        prepare(small(path, vocab_size=50), out, overwrite=True, log=stop_at)
    assert contents(out) == contents(expected)
    assert sorted(os.listdir(out)) == sorted(os.listdir(expected))


def test_damage_is_noticed_on_loading(tmp_path, seed):
    path, _ = write_corpus(tmp_path, seed)
    out = tmp_path / "out"
    prepare(small(path), out, log=silent)
    model = out / "tokenizer" / "spm.model"
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(UserError, match="SHA-256"):
        load(out)
    (out / "metadata.json").write_text("{")
    with pytest.raises(UserError, match=r"metadata.json is damaged"):
        load(out)
    prepare(small(path), out, overwrite=True, log=silent)
    for record in out.glob("packed_text/**/*train*array_record*"):
        record.unlink()
    with pytest.raises(UserError, match="'train'"):
        load(out).source("train")


def test_nothing_prepared(tmp_path):
    with pytest.raises(UserError, match=r"run python -m deberta_jax.prepare"):
        load(tmp_path / "nowhere")


def test_validation_corpus(tmp_path, seed):
    train, train_texts = write_corpus(tmp_path, seed, documents=1, name="train.jsonl")
    held_out, held_out_texts = write_corpus(tmp_path, seed + 1, documents=3, name="held.jsonl")
    config = small(train, sequence_length=65536, validation_corpus=str(held_out), vocab_size=40)
    with pytest.raises(UserError, match=r"single document.*data.validation_corpus"):
        prepare(dataclasses.replace(config, validation_corpus=""), tmp_path / "a", log=silent)
    made = prepare(config, tmp_path / "a", log=silent)
    prepared = load(tmp_path / "a")
    assert list(runs(prepared, "train")) == train_texts
    assert sorted(runs(prepared, "validation")) == sorted(held_out_texts)
    assert made.splits["validation"].documents == 3


def test_a_given_tokenizer_is_used_as_it_is(tmp_path, seed, tokenizer):
    path, _ = write_corpus(tmp_path, seed)
    config = small(path, tokenizer=tokenizer.path)
    with pytest.raises(UserError, match=r"data.vocab_size=60.*set data.vocab_size=2000"):
        prepare(config, tmp_path / "out", log=silent)
    prepare(dataclasses.replace(config, vocab_size=2000), tmp_path / "out", log=silent)
    assert load(tmp_path / "out").tokenizer.sha256 == tokenizer.sha256


def test_the_tokenizer_sees_no_validation_text(tmp_path, seed):
    path, _ = write_corpus(tmp_path, seed, documents=30)
    held_out = tmp_path / "held.txt"
    held_out.write_text("ქართული ენა " * 3000)
    prepare(small(path, validation_corpus=str(held_out)), tmp_path / "out", log=silent)
    assert not any("ქ" in piece for piece in load(tmp_path / "out").tokenizer.pieces)


def test_undecodable_bytes_are_reported(tmp_path, seed):
    path, _ = write_corpus(tmp_path, seed)
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"lorem \xff\xfe ipsum")
    lines = []
    made = prepare(small(f"{path},{bad}"), tmp_path / "out", log=lines.append)
    assert made.undecodable_bytes == {str(bad): 2}
    assert any("bad.txt: dropped 2 bytes" in line for line in lines)


@pytest.mark.parametrize("field, value, words", [
    ("sequence_length", 4, "8 to"), ("vocab_size", 50000, "largest possible"),
    ("vocab_size", 3, "or more"), ("validation_share", 1.0, "between 0 and 1"),
    ("tokenizer_sentences", 0, "or more"), ("workers", -1, "or more"),
    ("tokenizer", "no/such.model", "cannot be read"),
])  # fmt: skip
def test_settings_out_of_range(tmp_path, seed, field, value, words):
    path, _ = write_corpus(tmp_path, seed)
    with pytest.raises(UserError, match=words) as failure:
        prepare(small(path, **{field: value}), tmp_path / "out", log=silent)
    assert str(value) in str(failure.value)


def test_text_that_cleaning_leaves_nothing_of(tmp_path, seed):
    path, _ = write_corpus(tmp_path, seed)
    (tmp_path / "empty.md").write_text("---\n\n***\n")
    config = small(path, validation_corpus=f"{tmp_path}/empty.md")
    with pytest.raises(UserError, match="validation split holds no text"):
        prepare(config, tmp_path / "out", log=silent)


def test_standard_output_shows_our_lines_only(tmp_path, seed):
    path, _ = write_corpus(tmp_path, seed)
    program = (
        "from deberta_jax.data.config import DataConfig\n"
        "from deberta_jax.preparation.pipeline import prepare\n"
        f"prepare(DataConfig(corpus={str(path)!r}, vocab_size=60, sequence_length=32,"
        f" workers=1), {str(tmp_path / 'out')!r})\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    starts = ("reading", "sampling", "training", "tokenizing", "tokenizing", "prepared")
    lines = done.stdout.splitlines()
    assert [line.split()[0].rstrip(":") for line in lines] == list(starts)


@pytest.mark.parametrize("share", [1e-9, 0.3, 1 - 1e-9])
def test_hold_out(seed, share):
    names = [f"document {number}" for number in range(1000)]
    holdout = HoldOut(seed, share)
    for name in names:
        holdout.add(name)
    holdout.resolve("corpus")
    held_out = sum(map(holdout.validates, names))
    if share == 0.3:
        assert abs(held_out - 300) < 5 * (1000 * 0.21) ** 0.5
    else:
        assert held_out == (1 if share < 0.5 else 999)


def test_tokenizer_path_is_inside(prepared, comedies_dir):
    assert Path(prepared.tokenizer.path).parent.parent == comedies_dir
    assert isinstance(prepared.tokenizer, Tokenizer)
