"""Reads the two models of replaced token detection from every layout that they are published in.

The layouts differ in which files hold the two models, and in how the discriminator's word table
E_D = E_G + E_Δ is stored: `word_embeddings.weight` is the sum, `word_embeddings._weight` is E_Δ,
and a file has either or both.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from absl import logging

from deberta_jax.errors import UserError
from deberta_jax.interop import files, orbax_params
from deberta_jax.interop.config_json import read_config_file
from deberta_jax.interop.names import LM_PREFIX, POSITION_TABLE, RTD_PREFIX, WORD_TABLE
from deberta_jax.interop.released import (
    POSITION_DELTA,
    WORD_DELTA,
    Released,
    released_names,
    with_deltas,
)
from deberta_jax.interop.rtd_pair import (
    Pair,
    check_tables,
    discriminator_of,
    generator_of,
    layer_of,
)
from deberta_jax.interop.tokenizer_files import has_vocabulary
from deberta_jax.interop.tokenizers import PretrainedTokenizer, load_tokenizer
from deberta_jax.interop.wrapped import unwrapped
from deberta_jax.model.config import ModelConfig

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
# Microsoft's training names its checkpoints by their step.
_STEP_FILE = re.compile(r"pytorch\.model-(\d+)\.bin")
# The stored sum may be one step older than what it is the sum of. A step moves a table by far less
# than this part of its norm; another run's table differs from it by more than the whole norm.
_STALENESS = 0.1

Path_ = str | os.PathLike
Result = TypeVar("Result")


class _Half(NamedTuple):
    """One of the two models as its file has it, or a file that may hold both.

    Attributes:
        source: the file or directory that it was read from.
        folder: the directory of its config and its tokenizer.
        tensors: under today's released names, E_Δ included; of a file, under its own.
    """

    source: Path
    folder: Path
    tensors: dict[str, np.ndarray]


def read_pair(discriminator: Path_, generator: Path_ | None = None) -> Pair:
    """A discriminator, and its generator where there is one.

    `discriminator` is one of these, as `transformers`, Microsoft or this package writes them:

    - a checkpoint; its generator is `pytorch_model.generator.bin` or the folder `generator/` in it;
    - a directory with the folders `discriminator/` and `generator/`. If they hold files
      `pytorch.model-NNNNNN.bin`, as Microsoft's training writes them, the newest step that both
      have is read;
    - a file with the tensors of one model, or of both under `generator.` and `discriminator.`.

    The config is `config.json` or `model_config.json` beside the weights, which may have a section
    for each model; the generator's may be `generator_config.json`. A generator without a config
    has the discriminator's architecture, and as many layers as its file.

    Where the discriminator's file holds E_Δ, its word table is E_Δ plus the generator's table: the
    sum that the file may hold, too, is one step old. Otherwise E_Δ is the difference of the tables.

    Args:
        discriminator: a directory or a file.
        generator: a directory or a file, where the generator is elsewhere.

    Raises:
        UserError: a file is missing or damaged; tensors are missing, extra or misshapen; the two
            do not fit each other.
    """
    own_path = Path(discriminator).expanduser()
    other_path = None if generator is None else Path(generator).expanduser()
    if other_path is None and own_path.is_dir():
        own_path, other_path = _locate(own_path)
    file = _read(own_path, DISCRIMINATOR)
    half = _half(file, DISCRIMINATOR)
    if other_path is not None:
        file = _read(other_path, GENERATOR)
    elif not any(name.startswith(f"{GENERATOR}.") for name in file.tensors):
        return _alone(half)
    return _paired(half, _half(file, GENERATOR))


def _locate(directory: Path) -> tuple[Path, Path | None]:
    """The paths of a directory's discriminator, and of its generator if it has one."""
    own = directory / DISCRIMINATOR
    discriminator = own if own.is_dir() else directory
    generator = directory / GENERATOR
    if not generator.is_dir():
        published = _published(directory, GENERATOR)
        return discriminator, published if published.is_file() else None
    steps = _step_files(discriminator), _step_files(generator)
    if not all(steps):
        return discriminator, generator
    both = steps[0].keys() & steps[1].keys()
    if not both:
        raise UserError(
            f"{directory}: {DISCRIMINATOR}/ ends at {steps[0][max(steps[0])].name} and "
            f"{GENERATOR}/ at {steps[1][max(steps[1])].name}; no step is in both"
        )
    return steps[0][max(both)], steps[1][max(both)]


def holds_pair(directory: Path) -> bool:
    """Whether two models lie in a directory, neither of which is read as the checkpoint there."""
    folders = all((directory / part).is_dir() for part in (GENERATOR, DISCRIMINATOR))
    parts = any(_published(directory, part).is_file() for part in (GENERATOR, DISCRIMINATOR))
    return folders or (parts and not files.holds_weights(directory))


def holds_step_files(directory: Path) -> bool:
    """Whether a directory holds what Microsoft's training leaves of a model: a file a step."""
    return bool(_step_files(directory))


def _published(directory: Path, part: str) -> Path:
    return directory / f"pytorch_model.{part}.bin"


def _step_files(directory: Path) -> dict[int, Path]:
    """Files of Microsoft's training by step; none where the directory is a checkpoint."""
    if files.holds_weights(directory) or orbax_params.is_orbax(directory):
        return {}
    matches = {path: _STEP_FILE.fullmatch(path.name) for path in directory.glob("pytorch.model-*")}
    return {int(match[1]): path for path, match in matches.items() if match}


def _read(path: Path, part: str) -> _Half:
    """The tensors of a file, or of the file of a directory that holds the model called `part`."""
    if path.is_file():
        return _Half(path, path.parent, files.read_file(path))
    if not path.is_dir():
        raise UserError(f"{path} is neither a file nor a directory; it must hold a {part}")
    if (path / part).is_dir():
        return _read(path / part, part)
    if _published(path, part).is_file():
        return _read(_published(path, part), part)
    if steps := _step_files(path):
        return _read(steps[max(steps)], part)
    read = orbax_params.read if orbax_params.is_orbax(path) else files.read_tensors
    return _Half(path, path, read(path))


def _half(file: _Half, part: str) -> _Half:
    """The model called `part` of a file that may hold both."""
    file = file._replace(tensors=_blaming(file.source, unwrapped, file.tensors))
    parts = {name.split(".")[0] for name in file.tensors} & {GENERATOR, DISCRIMINATOR}
    if parts and part not in parts:
        raise UserError(f"{file.source} holds a {parts.pop()} only; it must hold a {part}")
    prefix = f"{part}." if parts else ""
    own = {
        name.removeprefix(prefix): x for name, x in file.tensors.items() if name.startswith(prefix)
    }
    return file._replace(tensors=_blaming(file.source, with_deltas, own))


def _blaming(source: Path, function: Callable[..., Result], *args) -> Result:
    """Calls the function; the message of a `UserError` begins with the file's name."""
    try:
        return function(*args)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _alone(half: _Half) -> Pair:
    """A discriminator without a generator: its file must hold the summed table."""
    tensors = _blaming(half.source, released_names, half.tensors)
    # The generator that will be made has a mask decoder, with or without a table in this file.
    config = _config(half, DISCRIMINATOR, has_position_table=True)
    discriminator = _blaming(half.source, discriminator_of, Released(config, tensors))
    return Pair(discriminator, tokenizer=_tokenizer([half], config))


def _paired(half: _Half, other: _Half) -> Pair:
    if _has(other, RTD_PREFIX) and not _has(half, RTD_PREFIX):
        raise UserError(
            f"{other.source} has {RTD_PREFIX}* and {half.source} has not: the first path names "
            "the discriminator, the second the generator"
        )
    base = _blaming(other.source, released_names, other.tensors)
    config = _config(half, DISCRIMINATOR, has_position_table=POSITION_TABLE in base)
    own = _generator_config(other, half, config)
    _blaming(other.source, check_tables, own, config)
    if not _has(other, LM_PREFIX):
        raise UserError(f"{other.source} has no {LM_PREFIX}*, the head that a generator needs")
    generator = _blaming(other.source, generator_of, Released(own, base))
    tensors = dict(half.tensors)
    delta = _blaming(half.source, _sum_table, tensors, WORD_TABLE, WORD_DELTA, base)
    _join_positions(tensors, base, config, half.source)
    discriminator = _blaming(half.source, discriminator_of, Released(config, tensors))
    return Pair(discriminator, generator, delta, _tokenizer([half, other], config))


def _has(half: _Half, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in half.tensors)


def _join_positions(tensors, base, config: ModelConfig, source: Path) -> None:
    """Sets the discriminator's absolute position table.

    A discriminator without absolute positions in its input never reads that table, so training
    never changed its E_Δ: the table is the generator's.
    """
    if config.position_biased_input:
        _blaming(source, _sum_table, tensors, POSITION_TABLE, POSITION_DELTA, base)
        return
    tensors.pop(POSITION_DELTA, None)
    if POSITION_TABLE in base:
        tensors[POSITION_TABLE] = base[POSITION_TABLE]


def _sum_table(tensors: dict, table: str, delta: str, base: dict) -> np.ndarray:
    """Replaces the table, and E_Δ if it is there, by the sum; returns E_Δ in float32."""
    own = np.asarray(base[table], np.float32)
    for name in (table, delta):
        if name in tensors and tensors[name].shape != own.shape:
            raise UserError(
                f"{name} is {tensors[name].shape}, the generator's table {own.shape}; they must be "
                "of one shape"
            )
    stored = np.asarray(tensors[table], np.float32) if table in tensors else None
    if delta in tensors:
        difference = np.asarray(tensors.pop(delta), np.float32)
        tensors[table] = own + difference
        if stored is not None:
            _check_sum(stored, tensors[table], table, delta)
        return difference
    if stored is None:
        raise UserError(f"has neither {table} nor {delta}")
    return stored - own


def _check_sum(stored: np.ndarray, summed: np.ndarray, table: str, delta: str) -> None:
    """Raises `UserError` if the stored sum cannot be an older sum of the same tables."""
    off = float(np.linalg.norm(stored - summed)) / (float(np.linalg.norm(stored)) or 1.0)
    if not off <= _STALENESS:  # NaN is refused, too
        raise UserError(
            f"{table} differs from the generator's plus {delta} by {off:.0%} of its norm: they are "
            f"not of one run. Name the generator that it was trained with, or drop {delta} to "
            "go on from the stored table"
        )
    if off:
        logging.info("%s is out of date by %.2g of its norm: the sum is computed", table, off)


def _config(half: _Half, part: str, has_position_table: bool) -> ModelConfig:
    path = _config_path(half.folder, part) or half.folder / "config.json"
    has_v1_attention = any(name.endswith("self.in_proj.weight") for name in half.tensors)
    has_position_table |= POSITION_TABLE in half.tensors
    return read_config_file(path, has_v1_attention, has_position_table, section=part)


def _config_path(folder: Path, part: str) -> Path | None:
    """The config file of a model whose weights are in `folder`."""
    own = folder / f"{part}_config.json"
    folders = [folder, folder.parent] if folder.name == part else [folder]
    shared = [f / name for f in folders for name in ("config.json", "model_config.json")]
    return next((path for path in (own, *shared) if path.is_file()), None)


def _generator_config(other: _Half, half: _Half, config: ModelConfig) -> ModelConfig:
    """The generator's config; or the discriminator's with the number of layers of its file."""
    path = _config_path(other.folder, GENERATOR)
    if path and path != _config_path(half.folder, DISCRIMINATOR):
        return _config(other, GENERATOR, has_position_table=False)
    own = _config(other, GENERATOR, has_position_table=False) if path else config
    layers = 1 + max(map(layer_of, other.tensors))
    emd = POSITION_TABLE in other.tensors and config.enhanced_mask_decoder
    return dataclasses.replace(own, num_hidden_layers=max(1, layers), enhanced_mask_decoder=emd)


def _tokenizer(halves: Sequence[_Half], config: ModelConfig) -> PretrainedTokenizer | None:
    """The tokenizer in the directories of the weights, or None.

    Raises:
        UserError: two tokenizers differ, or one has more tokens than the table has rows.
    """
    folders = []
    for folder in (half.folder for half in halves):
        above = [folder.parent] if folder.name in (GENERATOR, DISCRIMINATOR) else []
        folders += [folder, *above]
    read = {f: load_tokenizer(f) for f in dict.fromkeys(folders) if has_vocabulary(f)}
    if not read:
        return None
    first, *others = read.items()
    for folder, tokenizer in others:
        if tokenizer.pieces != first[1].pieces:
            raise UserError(
                f"{first[0]} and {folder} have different tokenizers, of {first[1].vocab_size} and "
                f"{tokenizer.vocab_size} tokens; a generator and its discriminator share one"
            )
    if first[1].vocab_size > config.vocab_size:
        raise UserError(
            f"{first[0]}: the tokenizer has {first[1].vocab_size} tokens, the word table "
            f"{config.vocab_size} rows; they have to belong together"
        )
    return first[1]
