"""Sentences and minimal pairs to be scored: text files, JSONL, and TFDS datasets such as BLiMP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from deberta_jax.data.formats import paths
from deberta_jax.data.formats.json_text import LINES, document, json_lines, listed, whole_text
from deberta_jax.data.formats.lines import decoded, ending, text_lines
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
            `text_field`, or with BLiMP's fields), .json (a list of them), also compressed;
            "tfds:NAME/CONFIG", or "tfds:NAME" for all its configurations.
        text_field: the field of single sentences.
        tfds_dir: where TFDS keeps its data; empty for its default.

    Raises:
        UserError: a file is missing or malformed, a field is missing or no text, or there is
            nothing.
    """
    items = []
    for part in paths.split(inputs):
        if part.startswith(_TFDS):
            sources = _datasets(part.removeprefix(_TFDS), tfds_dir)
        else:
            sources = ((path, _lines(path, text_field)) for path in corpora.part_files(part))
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
        value = _decoded(record[field], where)
        if not isinstance(value, str):
            raise UserError(f"{where}: field {field!r} holds {value!r:.40}, not a string")
        sentences.append(value)
    group = _decoded(record.get(GROUP_FIELD, Path(source).name.split(".")[0]), where)
    if isinstance(group, bool) or not isinstance(group, str | int):
        raise UserError(f"{where}: field {GROUP_FIELD!r} holds {group!r:.40}, not a name")
    return Item(source, number, str(group), tuple(sentences))


def _decoded(value: Any, where: str) -> Any:
    """The text of bytes, as TFDS stores it; other values as they are."""
    return decoded(value, where) if isinstance(value, bytes) else value


def _lines(path: str, text_field: str) -> Iterator[tuple[int, Any]]:
    """(line, what it holds) of a text file, its empty lines too, or of JSON, a line or a list."""
    if ending(path) == ".json" and (value := document(whole_text(path), path)) is not LINES:
        if (records := listed(value)) is None:
            raise UserError(f"{path}: a JSON {type(value).__name__}; it holds a list of objects")
        yield from enumerate(records, start=1)
    elif ending(path) in (".jsonl", ".json"):
        yield from json_lines(path)
    else:
        for number, text in text_lines(path):
            yield number, {text_field: text}


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
