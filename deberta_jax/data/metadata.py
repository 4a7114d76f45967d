"""What a folder of prepared data says about itself."""

import dataclasses
import json
import os

from deberta_jax.data.config import DataConfig
from deberta_jax.errors import UserError

METADATA_FILE = "metadata.json"
# Raised when prepared data of an older form can no longer be read.
FORMAT = 1

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
    format: int = FORMAT

    @property
    def sequence_length(self) -> int:
        return int(self.settings["sequence_length"])

    def write(self, directory: str) -> None:
        """Writes the metadata in one step: it is there whole or not at all."""
        path = os.path.join(directory, METADATA_FILE)
        unfinished = f"{path}.tmp"
        with open(unfinished, "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(self), file, indent=2, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)


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
    try:
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
        if fields["format"] != FORMAT:
            raise UserError(
                f"{path} is of format {fields['format']}, this version reads {FORMAT}; "
                "remake the data with --overwrite"
            )
        splits = {name: SplitCounts(**counts) for name, counts in fields.pop("splits").items()}
        return Metadata(splits=splits, **fields)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); remake the data with --overwrite") from error


def differences(metadata: Metadata, config: DataConfig) -> list[str]:
    """One line for every setting in which prepared data differs from what is asked for."""
    asked, found = shaping_settings(config), metadata.settings
    return [
        f"data.{name}: prepared with {found.get(name)!r}, asked for {asked.get(name)!r}"
        for name in sorted(asked.keys() | found.keys())
        if asked.get(name) != found.get(name)
    ]
