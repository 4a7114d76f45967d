"""Examples of TFDS data sets, as files would hold them."""

import importlib
import importlib.util
import re
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from deberta_jax.errors import UserError

PREFIX = "tfds:"
# A version ("glue/sst2:2.0.0") is part of a name; TFDS's splits may hold colons ("train[:80%]").
_NAMED = re.compile(r"([^:\[\]+]+(?::[\d.*]+)?):(.+)")
# Families that TFDS finds by name only where TensorFlow is there, by their classes.
_CLASSES = {"glue": "Glue", "super_glue": "SuperGlue", "goemotions": "Goemotions"}
# How often a download is tried again, after twice the pause each time: for six seconds. TFDS's own
# ten take minutes to say that there is no network.
_RETRIES = 5
# All that their modules take of TensorFlow to say what their records hold.
_DTYPES = types.SimpleNamespace(int32=np.int32, bool=np.bool_)


def read(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(data set and index, values by column) of every record; classes by their names.

    Raises:
        UserError: it cannot be had, or a text is not UTF-8.
    """
    import tensorflow_datasets as tfds

    match = _NAMED.fullmatch(source.removeprefix(PREFIX))
    if not match:
        raise UserError(f"{source}: it has to be {PREFIX}NAME:SPLIT, such as tfds:glue/sst2:train")
    name, split = match.groups()
    downloader: Any = importlib.import_module("tensorflow_datasets.core.download.downloader")
    downloader.MAX_RETRIES = _RETRIES
    try:
        builder = _builder(tfds, name)
        builder.download_and_prepare(file_format="array_record")
        data = builder.as_data_source(split=split)
    except Exception as error:  # TFDS raises many kinds, and what it downloads with more
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{source} cannot be had ({reason}); or name local files") from error
    for index, record in enumerate(data):
        where = f"{source}[{index}]"
        try:
            values = {k: _plain(v, builder.info.features[k]) for k, v in record.items()}
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 ({error.reason})") from error
        yield where, values


def _builder(tfds: Any, name: str) -> Any:
    """A data set's builder; the families of `_CLASSES` need no TensorFlow to be read."""
    full, _, version = name.partition(":")
    family, _, config = full.partition("/")
    if family not in _CLASSES:
        return tfds.builder(name)
    module: Any = importlib.import_module(f"tensorflow_datasets.text.{family}")
    if hasattr(module, "tf") and importlib.util.find_spec("tensorflow") is None:
        module.tf = _DTYPES
    options = {"config": config, "version": version}
    options = {key: value for key, value in options.items() if value}
    return getattr(module, _CLASSES[family])(**options)


def _plain(value: Any, feature: Any) -> Any:
    """A value of TFDS as a file would hold it: text, not bytes; a class's name, not its number."""
    if isinstance(value, dict):
        return {name: _plain(item, _field(feature, name)) for name, item in value.items()}
    if isinstance(value, bytes):
        return value.decode()
    if np.ndim(value) or isinstance(value, list | tuple):
        return [_plain(item, getattr(feature, "feature", feature)) for item in value]
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value)) if value >= 0 else None
    return value.item() if hasattr(value, "item") else value


def _field(feature: Any, name: str) -> Any:
    try:
        return feature[name]
    except (KeyError, TypeError):
        return None
