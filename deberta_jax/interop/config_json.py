"""`config.json` of released checkpoints, both ways."""

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.data.names import alternatives
from deberta_jax.errors import UserError
from deberta_jax.interop.config_fields import SHARED, check_fields
from deberta_jax.interop.names import LM_PREFIX
from deberta_jax.model.config import ModelConfig

# Architecture names that transformers reads the model's class from, by task.
_ARCHITECTURES = {
    None: "Model",
    "masked_lm": "ForMaskedLM",
    # transformers has no such head; the encoder of the file is read all the same.
    "replaced_token": "Model",
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "multiple_choice": "ForMultipleChoice",
}
# The tasks whose number of labels the file states.
CLASSIFIERS = ("sequence_classification", "token_classification")
_FAMILIES = {"deberta": "Deberta", "deberta-v2": "DebertaV2"}
# What GLiNER, which has a DeBERTa as its encoder, writes instead of `config.json`.
_GLINER = "gliner_config.json"
# Activations that transformers has under several names.
_ACTIVATIONS = {"gelu_python": "gelu", "gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new"}
# What a field missing from a released file means: the released code's default, not ours.
_RELEASED_DEFAULTS = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-7,
    "position_biased_input": True,
}


def read_config(directory: Path, has_v1_attention: bool, has_position_table: bool) -> ModelConfig:
    """The architecture that `directory/config.json` states.

    Args:
        directory: a checkpoint, from `transformers` or Microsoft.
        has_v1_attention: its tensors are v1's; decides where the file names no `model_type`.
        has_position_table: it holds an absolute position table; without one there is no EMD.

    Raises:
        UserError: the file is missing or damaged, or states what no DeBERTa here can be.
    """
    path = directory / "config.json"
    section = ""
    if not path.exists() and (directory / _GLINER).exists():
        path, section = directory / _GLINER, "encoder_config"
    return read_config_file(path, has_v1_attention, has_position_table, section)


def read_config_file(
    path: Path, has_v1_attention: bool, has_position_table: bool, section: str = ""
) -> ModelConfig:
    """As `read_config`, of a file with any name.

    Microsoft's training by replaced token detection describes two models in one file; `section`
    is then "generator" or "discriminator". A file without that section describes one model. In the
    file of a GLiNER the encoder has a section too, "encoder_config".
    """
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if section == "encoder_config":
            stated = _encoder_config(stated)
        elif isinstance(stated.get(section), dict):
            stated = stated | stated[section]
        return _config(stated, has_v1_attention, has_position_table)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; a checkpoint needs one") from error
    except KeyError as error:
        raise UserError(f"{path} has no field {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _config(stated: dict, has_v1_attention: bool, has_position_table: bool) -> ModelConfig:
    model_type = stated.get("model_type", "deberta" if has_v1_attention else "deberta-v2")
    if model_type not in _FAMILIES:
        raise UserError(f"model_type is {model_type!r}; it must be one of {tuple(_FAMILIES)}")
    check_fields(stated)
    values: dict[str, Any] = {name: _RELEASED_DEFAULTS.get(name) for name in SHARED}
    values |= {name: stated[name] for name in SHARED if name in stated or values[name] is None}
    values["hidden_act"] = _activation(values["hidden_act"])
    terms = stated.get("pos_att_type") or ()
    terms = terms.lower().split("|") if isinstance(terms, str) else terms
    terms = tuple(term.strip() for term in terms if term.strip() != "none")
    _check_scale(stated, terms)
    limit = stated.get("max_relative_positions", -1)
    norms = [name.strip() for name in stated.get("norm_rel_ebd", "none").lower().split("|")]
    pooler = stated.get("pooler_hidden_act", (stated.get("pooling") or {}).get("hidden_act"))
    emd = not values["position_biased_input"] and has_position_table
    return ModelConfig(
        **values,
        model_type=model_type,
        enhanced_mask_decoder=stated.get("enhanced_mask_decoder", emd) and has_position_table,
        pos_att_type=terms,
        max_relative_positions=limit if limit > 0 else values["max_position_embeddings"],
        position_buckets=max(0, stated.get("position_buckets", -1)),
        share_att_key=stated.get("share_att_key", False),
        norm_rel_ebd="layer_norm" if "layer_norm" in norms else "none",
        causal=stated.get("causal", False),
        conv_kernel_size=max(0, stated.get("conv_kernel_size", 0)),
        conv_act=_activation(stated.get("conv_act", "tanh")),
        pooler_hidden_act=_activation(pooler or "gelu"),
    )


def _encoder_config(stated: dict) -> dict:
    section = stated.get("encoder_config")
    if not isinstance(section, dict):
        raise UserError(
            f"has no encoder_config; put the config.json of {stated.get('model_name')}, with "
            f"vocab_size {stated.get('vocab_size')}, beside it"
        )
    return section


def _check_scale(stated: dict, terms: tuple[str, ...]) -> None:
    """Other code divides the scores by sqrt(d (1 + terms)), the terms being off or not."""
    if terms and not stated.get("relative_attention", False):
        raise UserError(
            f"relative_attention is false, but pos_att_type is {'|'.join(terms)}: scores without "
            "relative terms, divided as if they had them; no released DeBERTa is like that, and "
            "none here. Set relative_attention to true if its file holds rel_embeddings"
        )


def _activation(name: Any) -> Any:
    return _ACTIVATIONS.get(name, name)


def write_config(
    config: ModelConfig,
    directory: Path,
    task: str | None,
    num_labels: int,
    dtype: str,
    file: str = "config.json",
    **spelling,
) -> None:
    """Writes `config.json`; `spelling` replaces fields that a layout writes otherwise."""
    stated = config_json(config, task, num_labels) | {"dtype": dtype} | spelling
    text = json.dumps(stated, indent=2) + "\n"
    storage.write(directory / file, text)


def config_json(config: ModelConfig, task: str | None = "masked_lm", num_labels: int = 2) -> dict:
    """A complete `config.json`: every field, since the defaults there are not DeBERTa's."""
    values = dataclasses.asdict(config)
    stated = {
        "architectures": [_FAMILIES[config.model_type] + _ARCHITECTURES[task]],
        "model_type": config.model_type,
        **{name: values[name] for name in SHARED},
        "attention_head_size": config.head_size,
        "type_vocab_size": 0,
        "relative_attention": bool(config.pos_att_type),
        "max_relative_positions": config.max_relative_positions,
        "position_buckets": config.position_buckets or -1,
        "pos_att_type": list(config.pos_att_type),
        "share_att_key": config.share_att_key,
        "norm_rel_ebd": config.norm_rel_ebd if config.pos_att_type else "none",
        "conv_kernel_size": config.conv_kernel_size,
        "conv_act": config.conv_act,
        "pooler_hidden_size": config.hidden_size,
        "pooler_hidden_act": config.pooler_hidden_act,
        "pooler_dropout": 0.0,
        "pad_token_id": 0,
        # Our own: transformers keeps them and does not use them.
        "enhanced_mask_decoder": config.enhanced_mask_decoder,
        "causal": config.causal,
        # A masked LM's head is called `cls.predictions`.
        "legacy": True,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if task in CLASSIFIERS:
        stated |= label_fields([f"LABEL_{label}" for label in range(num_labels)])
    return stated


def head_fields(names: Collection[str]) -> dict[str, bool]:
    """What `config.json` says of the masked-LM head among tensors of these names."""
    return {
        "legacy": not any(name.startswith(LM_PREFIX) for name in names),
        "tie_word_embeddings": not any("decoder.weight" in name for name in names),
    }


def label_fields(names: Sequence[str]) -> dict:
    r"""How `config.json` names a classifier's labels; "a|b" is named a, "a\|b" is named a|b."""
    names = [alternatives(name)[0] for name in names]
    places = {name: place for place, name in enumerate(names)}
    return {"id2label": {str(place): name for name, place in places.items()}, "label2id": places}
