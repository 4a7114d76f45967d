"""What a folder of prepared data says about itself."""

import dataclasses
import json
import os
from typing import Any

from deberta_jax import storage
from deberta_jax.data.config import DataConfig
from deberta_jax.errors import UserError

METADATA_FILE = "metadata.json"
# The version of this file's schema. A setting that an older file lacks has its default. Version 2
# has `texts`.
FORMAT = 2
SPLITS = ("train", "validation")

# Fields of DataConfig that change where or how fast data is prepared, never the data itself.
_NOT_SHAPING = ("dir", "workers", "prefetch")


@dataclasses.dataclass(frozen=True)
class SplitCounts:
    """What one split holds. `tokens` leaves out [CLS] and [SEP]; `positions` only the padding."""

    documents: int
    sequences: int
    tokens: int
    positions: int


@dataclasses.dataclass(frozen=True)
class Metadata:
    """All that defines prepared data (`settings`) and what came of it."""

    settings: dict[str, str | int | float]
    tokenizer_sha256: str
    # Ids, [MASK] included.
    vocab_size: int
    splits: dict[str, SplitCounts]
    empty_documents: int
    # Bytes that were not UTF-8 and were dropped, by file.
    undecodable_bytes: dict[str, int]
    # By field of the config, "corpus" and "validation_corpus": what was read, {"files": their
    # number, "bytes": their size as they lie on the disk, "sha256": of their text}.
    texts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    # Digest of the token frequencies that lie beside this file; "" in files of older programs.
    unigram_counts_sha256: str = ""
    format: int = FORMAT

    @property
    def sequence_length(self) -> int:
        return int(self.settings["sequence_length"])

    def check(self) -> None:
        """Raises `ValueError` or `TypeError` for what no preparation can have written."""
        if self.sequence_length < 1 or not all(split in self.splits for split in SPLITS):
            raise ValueError("it lacks a split or a length")
        for counts in self.splits.values():
            if not all(isinstance(count, int) for count in dataclasses.astuple(counts)):
                raise TypeError("a count is no whole number")
        for text in self.texts.values():
            if not text.keys() >= {"files", "bytes", "sha256"}:
                raise ValueError("a text lacks its size or its digest")

    def write(self, directory: str) -> None:
        """Writes the metadata in one step: it is there whole or not at all."""
        path = os.path.join(directory, METADATA_FILE)
        storage.write_json(path, dataclasses.asdict(self), sort_keys=True)


def shaping_settings(config: DataConfig) -> dict[str, str | int | float]:
    """The fields of `config` that shape the prepared data."""
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in _NOT_SHAPING}


def read_metadata(directory: str) -> Metadata | None:
    """The metadata in `directory`, or None if no data was prepared there to the end.

    Raises:
        UserError: there is a file, but it is damaged or of another format.
    """
    path = os.path.join(directory, METADATA_FILE)
    if not storage.exists(path):
        return None
    text = storage.read_text(path)
    try:
        fields = json.loads(text)
        version = fields.pop("format")
        if version not in range(1, FORMAT + 1):
            raise UserError(
                f"{path} is of format {version}, this program reads up to {FORMAT}: install "
                "a newer deberta_jax, or remake the data with --overwrite"
            )
        splits = {name: SplitCounts(**counts) for name, counts in fields.pop("splits").items()}
        # A setting that an older program did not have was at its default.
        settings = shaping_settings(DataConfig()) | fields.pop("settings")
        metadata = Metadata(settings=settings, splits=splits, **fields)
        metadata.check()
        return metadata
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise UserError(f"{path} is damaged ({error}); remake the data with --overwrite") from error


def differences(metadata: Metadata, config: DataConfig) -> list[str]:
    """One line for every setting in which prepared data differs from what is asked for."""
    asked, prepared = shaping_settings(config), metadata.settings
    return [
        f"data.{name}: prepared with {prepared.get(name)!r}, asked for {asked.get(name)!r}"
        for name in sorted(asked.keys() | prepared.keys())
        if asked.get(name) != prepared.get(name)
    ]
