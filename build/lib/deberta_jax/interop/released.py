"""A released checkpoint as it is read from a directory: config and tensors, under one naming."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deberta_jax.errors import UserError
from deberta_jax.interop import orbax_params
from deberta_jax.interop.config_json import read_config
from deberta_jax.interop.files import read_tensors
from deberta_jax.interop.names import LEGACY_LM_HEAD, LM_HEAD, POSITION_TABLE
from deberta_jax.model.config import ModelConfig

_WORDS = "deberta.embeddings.word_embeddings.weight"
# Derived tensors: buffers, and GDES's delta (`_weight`), which `.weight` includes.
_DERIVED = (
    "deberta.embeddings.position_ids",
    "deberta.embeddings.word_embeddings._weight",
    "deberta.embeddings.position_embeddings._weight",
)
_RELATIVE = ("deberta.encoder.rel_embeddings.", "deberta.encoder.LayerNorm.")
_TIED = {
    "cls.predictions.decoder.weight": _WORDS,
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "lm_predictions.lm_head.decoder.weight": _WORDS,
}


class Released(NamedTuple):
    """A checkpoint: its architecture, and its tensors under today's released names."""

    config: ModelConfig
    tensors: dict[str, np.ndarray]


def read_released(directory: Path) -> Released:
    """Reads `config.json` and the weights of a checkpoint, whichever layout they are in.

    Raises:
        UserError: a file is missing, damaged, or describes an architecture that is not supported.
    """
    if orbax_params.is_orbax(directory):
        tensors = orbax_params.read(directory)
    else:
        tensors = read_tensors(directory)
    tensors = released_names(tensors)
    config = read_config(
        directory,
        has_v1_attention=any(name.endswith("self.in_proj.weight") for name in tensors),
        has_position_table=POSITION_TABLE in tensors,
    )
    if not config.pos_att_type:  # a relative table that no term reads
        tensors = {name: x for name, x in tensors.items() if not name.startswith(_RELATIVE)}
    return Released(config, tensors)


def released_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under today's released names, without buffers and tied copies.

    Old files say `bert.` for `deberta.`, `gamma` and `beta` for a norm's weight and bias; a bare
    model that `transformers` saved has no prefix at all; its default masked-LM head is named
    `cls.predictions` for `lm_predictions.lm_head`.

    Raises:
        UserError: a stored decoder is not the tensor that it should be tied to.
    """
    bare = "embeddings.word_embeddings.weight" in tensors
    renamed = {_renamed(name, bare): tensor for name, tensor in tensors.items()}
    for name in _DERIVED:
        renamed.pop(name, None)
    for name, source in _TIED.items():
        tied = renamed.pop(name, None)
        if tied is not None and not np.array_equal(tied, renamed.setdefault(source, tied)):
            raise UserError(f"{name} differs from {source}, which it should be tied to")
    for (old, _, _), (new, _, _) in zip(LEGACY_LM_HEAD, LM_HEAD, strict=True):
        for name in [name for name in renamed if name.startswith(old)]:
            renamed.setdefault(new + name.removeprefix(old), renamed.pop(name))
    return renamed


def _renamed(name: str, bare: bool) -> str:
    if name.endswith((".gamma", ".beta")):
        name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    if name.startswith("bert."):
        return f"deberta.{name.removeprefix('bert.')}"
    if bare and name.startswith(("embeddings.", "encoder.")):
        return f"deberta.{name}"
    return name
