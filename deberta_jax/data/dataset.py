"""Prepared data, as `preparation` made it: read at random."""

import dataclasses
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax import storage
from deberta_jax.data.config import DataConfig
from deberta_jax.data.metadata import Metadata, read_metadata
from deberta_jax.data.packed_text import TRAIN, open_records
from deberta_jax.data.tokenizer import FIRST_ORDINARY_ID, MODEL_FILE, Tokenizer
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
        unigram_counts_V = np.load(io.BytesIO(storage.read_bytes(path)))
    except UserError:
        raise
    except Exception as error:  # NumPy raises many kinds for a damaged header
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read: {reason}") from error
    if unigram_counts_V.shape != (tokenizer.vocab_size,):
        raise UserError(f"{path} does not fit the tokenizer; prepare again with --overwrite")
    _check_counts(unigram_counts_V, metadata, path)
    return PreparedData(directory, metadata, tokenizer, unigram_counts_V)


def _check_counts(counts_V: np.ndarray, metadata: Metadata, path: str) -> None:
    """Raises `UserError` unless these can be the counts of the train split's ordinary tokens."""
    tokens = metadata.splits[TRAIN].tokens
    if counts_V.dtype != np.int64:
        problem = f"its numbers are {counts_V.dtype}, not int64"
    elif metadata.unigram_counts_sha256 not in ("", counts_digest(counts_V)):
        problem = "its digest is another than that in the metadata"
    elif counts_V.min() < 0 or counts_V[:FIRST_ORDINARY_ID].any() or counts_V.sum() > tokens:
        problem = f"it holds no counts of {tokens:,} tokens"
    else:
        return
    raise UserError(f"{path} is damaged: {problem}; prepare the data again with --overwrite")


def counts_digest(counts_V: np.ndarray) -> str:
    """SHA-256 of the counts, whatever file they lie in."""
    return hashlib.sha256(np.ascontiguousarray(counts_V, "<i8").tobytes()).hexdigest()


def model_path(directory: str) -> str:
    """The SentencePiece model of the data prepared in `directory`."""
    return os.path.join(directory, TOKENIZER_DIR, MODEL_FILE)


def data_directory(config: DataConfig, workdir: Path) -> Path:
    """The prepared data of a run: `data.dir`, or `data` in the workdir."""
    return storage.user_path(config.dir) if config.dir else workdir / "data"
