"""Filled masks: one word of a held-out sentence, in text with and without blanks."""

import json
import random

import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.data.config import DataConfig
from deberta_jax.data.dataset import load
from deberta_jax.evaluation.fill_mask import fill_mask_examples, masked_batch
from deberta_jax.evaluation.replaced_tokens import replaced_token_examples
from deberta_jax.preparation.pipeline import prepare

CHINESE = [
    "我们", "今天", "去", "学校", "看", "书", "他", "喜欢", "吃", "苹果", "天气", "很", "好",
    "北京", "是", "中国", "的", "首都", "老师", "说", "明天",
]  # fmt: skip
ENGLISH = ["the", "boat", "near", "every", "house", "slowly", "turned", "while", "people", "talked"]
SCRIPTS = {"chinese": 60, "dna": 60, "english": 34}


def chinese(rng):
    return "".join("".join(rng.choices(CHINESE, k=rng.randint(6, 14))) + "。" for _ in range(20))


def dna(rng):
    return "".join(rng.choices("ACGT", k=400))


def english(rng):
    return " ".join(" ".join(rng.choices(ENGLISH, k=rng.randint(9, 14))) + "." for _ in range(20))


@pytest.fixture(scope="module", params=SCRIPTS)
def data(request, tmp_path_factory):
    """A small prepared corpus of each script."""
    write, pieces, rng = globals()[request.param], SCRIPTS[request.param], random.Random(3)
    folder = tmp_path_factory.mktemp(request.param)
    lines = (json.dumps({"text": write(rng)}) + "\n" for _ in range(40))
    (folder / "text.jsonl").write_text("".join(lines))
    config = DataConfig(
        corpus=str(folder / "text.jsonl"),
        vocab_size=pieces,
        sequence_length=64,
        workers=1,
        validation_share=0.2,
    )
    prepare(config, folder / "data", log=lambda line: None)
    return load(folder / "data")


def test_one_word_is_masked_and_shown(data, seed):
    batch, chosen = masked_batch(data, np.random.default_rng(seed), 4)
    assert len(chosen) == 4
    for row, (ids, position) in enumerate(chosen):
        assert (batch["input_ids"][row] == data.tokenizer.mask_id).sum() == 1
        assert batch["input_ids"][row, position] == data.tokenizer.mask_id
        assert not data.tokenizer.is_special_V[ids[1:-1]].any() and 3 < len(ids) <= 64
        # The sentence is the text's own, up to the blank before it.
        assert batch["segment_ids"][row].sum() == len(ids)


def test_the_lines_tell_what_was_there_and_what_is_guessed(data, seed):
    """A model that always says the same token, and one that suspects every token alike."""
    favourite = int(np.random.default_rng(seed).integers(5, data.tokenizer.mask_id))

    def logits(params, batch):
        shape = (*batch["masked_positions"].shape, data.tokenizer.vocab_size)
        return jnp.zeros(shape).at[..., favourite].set(50.0)

    lines = fill_mask_examples(logits, None, data, seed, 3)
    _, chosen = masked_batch(data, np.random.default_rng(seed), 3)
    assert len(lines) == 3
    for line, (ids, position) in zip(lines, chosen, strict=True):
        assert " [MASK] " in line and f"was: {data.tokenizer.decode([ids[position]])};" in line
        assert f"guesses: {data.tokenizer.decode([favourite])} 100%" in line
    judged = replaced_token_examples(
        logits, lambda params, batch: jnp.zeros(batch["input_ids"].shape), None, data, seed, 3
    )
    assert len(judged) == 3
    assert all(f"became {data.tokenizer.decode([favourite])};" in line for line in judged)
