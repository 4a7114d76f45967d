"""A released checkpoint as it is read from a directory: config and tensors, under one naming."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deberta_jax.data.nested import transformer_folder
from deberta_jax.errors import UserError
from deberta_jax.interop import orbax_params
from deberta_jax.interop.config_json import read_config
from deberta_jax.interop.files import read_tensors
from deberta_jax.interop.names import (
    LEGACY_LM_HEAD,
    LM_HEAD,
    POSITION_TABLE,
    UNTIED_DECODER,
    WORD_TABLE,
)
from deberta_jax.interop.wrapped import unwrapped
from deberta_jax.model.config import ModelConfig

# What a discriminator under GDES adds to its generator's tables; `.weight` is the sum.
WORD_DELTA = "deberta.embeddings.word_embeddings._weight"
POSITION_DELTA = "deberta.embeddings.position_embeddings._weight"
_BUFFERS = ("deberta.embeddings.position_ids",)
_RELATIVE = ("deberta.encoder.rel_embeddings.", "deberta.encoder.LayerNorm.")
_TIED = {
    "cls.predictions.decoder.weight": WORD_TABLE,
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    UNTIED_DECODER: WORD_TABLE,
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
    directory = transformer_folder(directory)
    if orbax_params.is_orbax(directory):
        tensors = orbax_params.read(directory)
    else:
        tensors = read_tensors(directory)
    try:
        tensors = released_names(tensors)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from None
    config = read_config(
        directory,
        has_v1_attention=any(name.endswith("self.in_proj.weight") for name in tensors),
        has_position_table=POSITION_TABLE in tensors,
    )
    if not config.pos_att_type:  # a relative table that no term reads
        tensors = {name: x for name, x in tensors.items() if not name.startswith(_RELATIVE)}
    return Released(config, tensors)


def released_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of one whole model, as `with_deltas` names them, without GDES's deltas.

    Raises:
        UserError: a head has two biases, or the tensors are of two models, or of a discriminator
            whose tables are another file's.
    """
    tensors = unwrapped(tensors)
    if any(name.startswith(("generator.", "discriminator.")) for name in tensors):
        raise UserError(
            "the tensors are named generator.* and discriminator.*, as replaced token detection "
            "leaves its two models in one file; only train.init reads such a pair"
        )
    renamed = with_deltas(tensors)
    if WORD_DELTA in renamed and WORD_TABLE not in renamed:
        raise UserError(
            f"{WORD_DELTA} is there without {WORD_TABLE}: it is what a discriminator adds to its "
            "generator's table, so it is read together with that generator only, by train.init"
        )
    return {name: x for name, x in renamed.items() if name not in (WORD_DELTA, POSITION_DELTA)}


def with_deltas(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under today's released names, without buffers and tied copies.

    Old files say `bert.` for `deberta.`, `gamma` and `beta` for a norm's weight and bias; a bare
    model that `transformers` saved has no prefix at all, one inside another model has that model's;
    its default masked-LM head is named `cls.predictions` for `lm_predictions.lm_head`.

    Raises:
        UserError: a head has two biases, or there are several encoders.
    """
    tensors = unwrapped(tensors)
    bare = any(name.startswith("embeddings.word_embeddings.") for name in tensors)
    renamed = {_renamed(name, bare): tensor for name, tensor in tensors.items()}
    for name in _BUFFERS:
        renamed.pop(name, None)
    for name, source in _TIED.items():
        tied = renamed.pop(name, None)
        if tied is None or np.array_equal(tied, renamed.setdefault(source, tied)):
            continue
        if source == WORD_TABLE:  # whoever reads the head refuses it
            renamed[UNTIED_DECODER] = tied
        elif UNTIED_DECODER in renamed:
            renamed[UNTIED_DECODER.replace("weight", "bias")] = tied
        else:
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
