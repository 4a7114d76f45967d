"""Prepared data, as `preparation` made it: read at random."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax.data.config import DataConfig
from deberta_jax.data.metadata import Metadata, read_metadata
from deberta_jax.data.packed_text import open_records
from deberta_jax.data.tokenizer import MODEL_FILE, Tokenizer
from deberta_jax.errors import UserError

TOKENIZER_DIR = "tokenizer"
COUNTS_FILE = "unigram_counts.npy"


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """Prepared data, ready to read."""

    directory: str
    metadata: Metadata
    tokenizer: Tokenizer
    # int64 [V]: how often each ordinary token occurs in the train split.
    unigram_counts: np.ndarray

    def source(self, split: str) -> Any:
        """Random access to a split: `source[i]` is {input_ids: int32 [L], segment_ids: uint16 [L]}.

        Raises:
            UserError: the records cannot be read, or are not as many as the metadata says.
        """
        advice = "prepare the data again with --overwrite"
        try:
            source = open_records(self.directory, split)
            count = len(source)
        except Exception as error:
            raise UserError(
                f"{self.directory}: split {split!r} cannot be read ({type(error).__name__}); "
                f"{advice}"
            ) from error
        expected = self.metadata.splits[split].sequences
        if count != expected:
            raise UserError(
                f"{self.directory}: split {split!r} has {count} sequences instead of {expected}; "
                f"{advice}"
            )
        return source


def load(directory: str | os.PathLike) -> PreparedData:
    """Opens the data that `prepare` made in `directory`.

    Raises:
        UserError: nothing was prepared there to the end, or it has been damaged since.
    """
    directory = os.fspath(directory)
    metadata = read_metadata(directory)
    if metadata is None:
        raise UserError(f"no prepared data in {directory}; run python -m deberta_jax.prepare first")
    tokenizer = Tokenizer(model_path(directory), metadata.tokenizer_sha256)
    path = os.path.join(directory, COUNTS_FILE)
    try:
        unigram_counts_V = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if unigram_counts_V.shape != (tokenizer.vocab_size,):
        raise UserError(f"{path} does not fit the tokenizer; prepare again with --overwrite")
    return PreparedData(directory, metadata, tokenizer, unigram_counts_V)


def model_path(directory: str) -> str:
    """The SentencePiece model of the data prepared in `directory`."""
    return os.path.join(directory, TOKENIZER_DIR, MODEL_FILE)


def data_directory(config: DataConfig, workdir: Path) -> Path:
    """The prepared data of a run: `data.dir`, or `data` in the workdir."""
    return Path(config.dir).expanduser() if config.dir else workdir / "data"
