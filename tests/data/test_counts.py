"""The token frequencies beside prepared data: damage is refused, never read as other numbers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.data.dataset import COUNTS_FILE, counts_digest, load
from deberta_jax.errors import UserError

DATA = Path(__file__).parents[1] / "formats" / "v1" / "data"


@pytest.fixture
def copied(tmp_path):
    """Prepared data as today's program writes it, but for its records."""
    shutil.copytree(DATA / "tokenizer", tmp_path / "tokenizer")
    shutil.copy(DATA / COUNTS_FILE, tmp_path)
    metadata = json.loads((DATA / "metadata.json").read_text())
    metadata["unigram_counts_sha256"] = counts_digest(np.load(DATA / COUNTS_FILE))
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    return tmp_path


def test_data_without_a_digest_are_loaded():
    np.testing.assert_array_equal(load(DATA).unigram_counts, np.load(DATA / COUNTS_FILE))


def test_no_damaged_bit_changes_a_number(copied, seed):
    path, rng = copied / COUNTS_FILE, np.random.default_rng(seed)
    whole, want = path.read_bytes(), load(copied).unigram_counts
    refused = 0
    for place in rng.integers(8 * len(whole), size=200):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(load(copied).unigram_counts, want)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100
    path.write_bytes(whole[: int(rng.integers(len(whole)))])
    with pytest.raises(UserError, match=COUNTS_FILE):
        load(copied)


@pytest.mark.parametrize("damage", ["negative", "floats", "too many", "a special token"])
def test_without_a_digest_what_cannot_be_is_refused(damage, copied):
    metadata = json.loads((copied / "metadata.json").read_text())
    del metadata["unigram_counts_sha256"]
    (copied / "metadata.json").write_text(json.dumps(metadata))
    counts_V = np.load(copied / COUNTS_FILE)
    if damage == "floats":
        counts_V = counts_V.astype(np.float64)
    else:
        index, number = {"negative": (9, -1), "too many": (9, 10**9), "a special token": (2, 1)}[
            damage
        ]
        counts_V[index] = number
    np.save(copied / COUNTS_FILE, counts_V)
    with pytest.raises(UserError, match=rf"{COUNTS_FILE} is damaged.*--overwrite"):
        load(copied)
