"""Sentences and minimal pairs to be scored: text files, JSONL, and TFDS datasets such as BLiMP."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from deberta_jax.data.compressed import reading
from deberta_jax.errors import UserError
from deberta_jax.preparation import corpora

# BLiMP's fields (Warstadt et al., arXiv 1912.00582).
PAIR_FIELDS = ("sentence_good", "sentence_bad")
GROUP_FIELD = "UID"
_TFDS = "tfds:"


class Item(NamedTuple):
    """One sentence, or a pair of a good one and a bad one.

    Attributes:
        source: the file or dataset it comes from.
        number: its line there, from 1.
        group: what its accuracy is counted under: its UID, else its file's name.
        sentences: (sentence,) or (good, bad).
    """

    source: str
    number: int
    group: str
    sentences: tuple[str, ...]


def read_items(inputs: str, text_field: str, tfds_dir: str = "") -> list[Item]:
    """Everything that `inputs` names, in order.

    Args:
        inputs: paths or globs, separated by commas: .txt (a sentence a line), .jsonl (objects with
            `text_field`, or with BLiMP's fields), also compressed; "tfds:NAME/CONFIG", or
            "tfds:NAME" for all its configurations.
        text_field: the field of single sentences.
        tfds_dir: where TFDS keeps its data; empty for its default.

    Raises:
        UserError: a file is missing or malformed, a field is missing or no text, or there is
            nothing.
    """
    items = []
    for part in filter(None, map(str.strip, inputs.split(","))):
        if part.startswith(_TFDS):
            sources = _datasets(part.removeprefix(_TFDS), tfds_dir)
        else:
            sources = ((path, _lines(path, text_field)) for path in corpora.corpus_files(part))
        for source, records in sources:
            items += [_item(source, number, record, text_field) for number, record in records]
    if not items:
        raise UserError(f"--input={inputs} holds no sentences")
    return items


def _item(source: str, number: int, record: Any, text_field: str) -> Item:
    where = f"{source}:{number}"
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON {type(record).__name__}; every line holds one object")
    pair = any(field in record for field in PAIR_FIELDS)
    sentences = []
    for field in PAIR_FIELDS if pair else (text_field,):
        if field not in record:
            raise UserError(f"{where}: no field {field!r}; there are: {', '.join(sorted(record))}")
        value = record[field]
        if isinstance(value, bytes):  # as TFDS stores text
            value = value.decode()
        if not isinstance(value, str):
            raise UserError(f"{where}: field {field!r} holds {value!r:.40}, not a string")
        sentences.append(value)
    group = record.get(GROUP_FIELD, Path(source).name.split(".")[0])
    group = group.decode() if isinstance(group, bytes) else str(group)
    return Item(source, number, group, tuple(sentences))


def _lines(path: str, text_field: str) -> Iterator[tuple[int, Any]]:
    """(line, what it holds) of a text file or a JSONL file; its empty lines too, of the former."""
    is_json = ".jsonl" in Path(path).suffixes
    with reading(path) as stream:
        for number in itertools.count(1):
            try:
                line = stream.readline()
                if not line:
                    return
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 ({error.reason})") from error
            if not is_json:
                yield number, {text_field: text}
            elif text.strip():
                try:
                    yield number, json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}:{number}: not JSON ({error})") from error


def _datasets(name: str, tfds_dir: str) -> Iterator[tuple[str, Iterator[tuple[int, Any]]]]:
    """Each configuration of a TFDS dataset that `name` names, prepared if it is not yet."""
    import tensorflow_datasets as tfds

    try:
        configs = [] if "/" in name else list(tfds.builder_cls(name).builder_configs)
        for full_name in [f"{name}/{config}" for config in configs] or [name]:
            # The format that is read without TensorFlow.
            builder = tfds.builder(full_name, data_dir=tfds_dir or None, file_format="array_record")
            builder.download_and_prepare()
            for split in builder.info.splits:
                source = builder.as_data_source(split)
                yield (
                    f"{_TFDS}{full_name}",
                    enumerate(map(source.__getitem__, range(len(source))), 1),
                )
    except UserError:
        raise
    except Exception as error:  # TFDS and the network raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{_TFDS}{name} cannot be read ({type(error).__name__}: {reason})"
        ) from error
