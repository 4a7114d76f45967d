"""The two models of replaced token detection, each as a whole; and how to make a generator."""

import dataclasses
from typing import NamedTuple

import numpy as np

from deberta_jax.errors import UserError
from deberta_jax.interop.names import (
    LM_HEAD,
    LM_PREFIX,
    POSITION_TABLE,
    RTD_PREFIX,
)
from deberta_jax.interop.pretrained import from_state_dict, to_state_dict
from deberta_jax.interop.released import Released
from deberta_jax.interop.tokenizers import PretrainedTokenizer
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.model.task_heads import TASK_MODELS

_LAYER = "deberta.encoder.layer."


class Generator(NamedTuple):
    """A masked LM.

    Attributes:
        config: its architecture.
        params: of `DebertaForMaskedLM(config)`, float32.
    """

    config: ModelConfig
    params: dict

    def released(self) -> Released:
        """It as a checkpoint, under released names."""
        return Released(self.config, to_state_dict(DebertaForMaskedLM(self.config), self.params))

    @property
    def word_table_VE(self) -> np.ndarray:
        return self.params["embeddings"]["word_embeddings"]["embedding"]


class Discriminator(NamedTuple):
    """A model that tells replaced tokens from original ones. Its word table is the sum, E_G + E_Δ.

    Attributes:
        config: its architecture.
        encoder: the parameters of `Deberta(config)`, float32. `embeddings` also holds
            `position_embeddings` where the file has that table, which only a generator reads.
        head: the parameters of `ReplacedTokenHead`; None where the file has no such head.
        lm_predictions: the masked-LM head in the discriminator's file, under released names: the
            head of its generator, whose body the file does not hold. Empty where there is none.
    """

    config: ModelConfig
    encoder: dict
    head: dict | None
    lm_predictions: dict[str, np.ndarray]

    def released(self) -> Released:
        """It as a checkpoint, under released names, without its generator's head."""
        params, task = self.encoder, None
        if self.head is not None:
            params, task = self.encoder | {"mask_predictions": self.head}, "replaced_token"
        tensors = to_state_dict(TASK_MODELS[task](self.config), params)
        if "position_embeddings" in self.encoder["embeddings"]:
            table = self.encoder["embeddings"]["position_embeddings"]["embedding"]
            tensors[POSITION_TABLE] = np.asarray(table)
        return Released(self.config, tensors)

    @property
    def word_table_VE(self) -> np.ndarray:
        return self.encoder["embeddings"]["word_embeddings"]["embedding"]


class Pair(NamedTuple):
    """What training by replaced token detection goes on from.

    Attributes:
        discriminator: the model that is kept after training.
        generator: of the discriminator's width, vocabulary and number of positions; None where
            only a discriminator was read (`make_generator` makes one).
        delta: float32 [V, E], the discriminator's word table minus the generator's; None without a
            generator.
        tokenizer: of both; None where no tokenizer lies beside them.
    """

    discriminator: Discriminator
    generator: Generator | None = None
    delta: np.ndarray | None = None
    tokenizer: PretrainedTokenizer | None = None


def generator_of(checkpoint: Released) -> Generator:
    """A generator from the tensors of a masked LM.

    Raises:
        UserError: there is no masked-LM head; or tensors are missing, extra or misshapen.
    """
    config, tensors = checkpoint
    if not any(name.startswith(LM_PREFIX) for name in tensors):
        raise UserError(f"has no {LM_PREFIX}*, the masked-LM head that a generator needs")
    # A generator that was saved with both heads is still a generator.
    tensors = {name: x for name, x in tensors.items() if not name.startswith(RTD_PREFIX)}
    return Generator(config, from_state_dict(DebertaForMaskedLM(config), tensors))


def discriminator_of(checkpoint: Released) -> Discriminator:
    """A discriminator from the tensors of an encoder, with or without heads.

    Raises:
        UserError: tensors are missing, extra or misshapen.
    """
    config, tensors = checkpoint
    own = {name: x for name, x in tensors.items() if not name.startswith(LM_PREFIX)}
    position_table = None if config.position_biased_input else own.pop(POSITION_TABLE, None)
    has_head = any(name.startswith(RTD_PREFIX) for name in own)
    params = from_state_dict(TASK_MODELS["replaced_token" if has_head else None](config), own)
    head = params.pop("mask_predictions", None)
    if position_table is not None:
        table = np.asarray(position_table, np.float32)
        embeddings = params["embeddings"] | {"position_embeddings": {"embedding": table}}
        params = params | {"embeddings": embeddings}
    lm_predictions = {name: x for name, x in tensors.items() if name.startswith(LM_PREFIX)}
    return Discriminator(config, params, head, lm_predictions)


def discriminator_from_params(
    config: ModelConfig, params: dict, position_table: np.ndarray | None = None
) -> Discriminator:
    """A discriminator from the parameters of `DebertaForReplacedToken(config)`.

    Args:
        config: its architecture.
        params: with the summed word table.
        position_table: float32 [positions, E] of its generator, for the files to hold.
    """
    encoder = {name: params[name] for name in ("embeddings", "encoder")}
    if position_table is not None:
        table = {"position_embeddings": {"embedding": position_table}}
        encoder["embeddings"] = encoder["embeddings"] | table
    return Discriminator(config, encoder, params["mask_predictions"], {})


def replaced_token_params(discriminator: Discriminator, seed: int = 0) -> dict:
    """The parameters of `DebertaForReplacedToken(discriminator.config)`.

    A head that the file lacks is initialised with `seed`. The position table is left out where the
    model does not read it.
    """
    config, tensors = discriminator.released()
    if not config.position_biased_input:
        tensors.pop(POSITION_TABLE, None)
    model = TASK_MODELS["replaced_token"](config)
    return from_state_dict(model, tensors, new=(RTD_PREFIX,), seed=seed)


def make_generator(discriminator: Discriminator, layers: int, seed: int = 0) -> Generator:
    """A generator of `layers` layers, made from a discriminator whose generator is not published.

    The body is the discriminator's embeddings and its lowest `layers` layers. Each layer then
    reads the output of the layer that it was trained on top of, which no other choice of layers
    gives; and the upper layers, which are left out, are the most specific to the discriminator's
    own task. The word table is the discriminator's, so E_Δ is zero at first.

    The head is the `lm_predictions` of the discriminator's file, which was trained in the missing
    generator. If the file has none, the head is initialised: a random dense layer, zero biases. So
    is the position table of the mask decoder.

    Args:
        discriminator: v2 or v3, with or without a head.
        layers: of the generator; published ones have half of the discriminator's.
        seed: of what is initialised.

    Raises:
        UserError: the discriminator does not have so many layers, or its head does not fit.
    """
    config = discriminator.config
    least = 1 + bool(config.conv_kernel_size)  # the convolution sits beside a layer of its own
    if not least <= layers <= config.num_hidden_layers:
        raise UserError(
            f"a generator of {layers} layers cannot be made from a discriminator of "
            f"{config.num_hidden_layers}; it must have {least} to {config.num_hidden_layers}"
        )
    config = dataclasses.replace(config, num_hidden_layers=layers, enhanced_mask_decoder=True)
    kept = {
        name: x
        for name, x in discriminator.released().tensors.items()
        if not name.startswith(RTD_PREFIX) and layer_of(name) < layers
    }
    whole_head = all(
        any(name.startswith(key) for name in discriminator.lm_predictions) for key, *_ in LM_HEAD
    )
    kept |= discriminator.lm_predictions if whole_head else {}
    model, new = DebertaForMaskedLM(config), (LM_PREFIX, POSITION_TABLE)
    return Generator(config, from_state_dict(model, kept, new=new, seed=seed))


def layer_of(name: str) -> int:
    """The index of the layer that a released tensor is of; -1 for one of no layer."""
    return int(name.removeprefix(_LAYER).split(".")[0]) if name.startswith(_LAYER) else -1


def check_tables(generator: ModelConfig, discriminator: ModelConfig) -> None:
    """Raises `UserError` unless the two can share their tables.

    They may differ in depth, heads and all else that no table depends on.
    """
    for field in ("hidden_size", "vocab_size", "max_position_embeddings"):
        own, other = getattr(generator, field), getattr(discriminator, field)
        if own != other:
            raise UserError(
                f"the generator's {field} is {own}, the discriminator's {other}; "
                f"they share their embeddings, so these must be equal"
            )
