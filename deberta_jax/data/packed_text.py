"""Packed sequences on disk: a TFDS dataset in ArrayRecord files."""

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from deberta_jax import storage

TRAIN, VALIDATION = "train", "validation"


class Sequence(NamedTuple):
    """One packed sequence: int32 [L] ids and uint16 [L] segments, 0 where there is padding."""

    input_ids: np.ndarray
    segment_ids: np.ndarray


# Makes the sequences of a split; called once for each.
Examples = Callable[[str], Iterator[Sequence]]


class PackedText(tfds.core.GeneratorBasedBuilder):
    """input_ids int32 [L] and segment_ids uint16 [L], splits train and validation.

    TFDS orders records by a hash of their number: that keeps its memory bounded, and each split
    comes out shuffled, the same way every time.
    """

    name = "packed_text"
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def __init__(self, *, sequence_length: int, examples: Examples, **kwargs: Any):
        self._sequence_length = sequence_length
        self._examples = examples
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        # Raw bytes: written twice as fast as lists of numbers, and hardly larger.
        tensor = functools.partial(
            tfds.features.Tensor, shape=(self._sequence_length,), encoding="bytes"
        )
        features = {"input_ids": tensor(dtype=np.int32), "segment_ids": tensor(dtype=np.uint16)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in (TRAIN, VALIDATION)}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for number, sequence in enumerate(self._examples(split)):
            yield number, sequence._asdict()


def write_records(directory: str, sequence_length: int, examples: Examples) -> None:
    """Writes both splits under `directory`."""
    tfds.disable_progress_bar()
    builder = PackedText(sequence_length=sequence_length, examples=examples, data_dir=directory)
    # TFDS announces a download, and where the data went, in colours.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()


def open_records(directory: str, split: str) -> Any:
    """Random access to what `write_records` wrote, and all of whose files are there.

    Raises FileNotFoundError, or whatever else TFDS raises, if it cannot be read.
    """
    folder = os.path.join(directory, PackedText.name, str(PackedText.VERSION))
    if folder.startswith("s3://"):  # which ArrayRecord does not read
        folder = os.fspath(storage.local_copy(folder))
    builder = tfds.builder_from_directory(folder)
    there = {path.name for path in storage.children(folder)}
    for path in builder.info.splits[split].filepaths:
        if os.path.basename(path) not in there:
            raise FileNotFoundError(path)
    source = builder.as_data_source(split)
    # ArrayRecord opens its files when they are first read.
    source.__getitems__([0, len(source) - 1])
    return source
