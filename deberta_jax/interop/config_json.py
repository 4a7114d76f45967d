"""`config.json` of released checkpoints, both ways."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.data.names import alternatives
from deberta_jax.errors import UserError
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
# Fields that mean the same and are named the same in `config.json` and in `ModelConfig`.
_SHARED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob",
    "max_position_embeddings", "initializer_range", "layer_norm_eps", "position_biased_input",
)  # fmt: skip
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
    return read_config_file(directory / "config.json", has_v1_attention, has_position_table)


def read_config_file(
    path: Path, has_v1_attention: bool, has_position_table: bool, section: str = ""
) -> ModelConfig:
    """As `read_config`, of a file with any name.

    Microsoft's training by replaced token detection describes two models in one file; `section`
    is then "generator" or "discriminator". A file without that section describes one model.
    """
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(stated.get(section), dict):
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
    for field in (
        "type_vocab_size", "conv_groups", "embedding_size", "attention_head_size", "talking_head",
    ):  # fmt: skip
        _refuse_unsupported(stated, field)
    values: dict[str, Any] = {name: _RELEASED_DEFAULTS.get(name) for name in _SHARED}
    values |= {name: stated[name] for name in _SHARED if name in stated or values[name] is None}
    terms = stated.get("pos_att_type") or ()
    terms = terms.lower().split("|") if isinstance(terms, str) else terms
    terms = tuple(term.strip() for term in terms if term.strip() != "none")
    limit = stated.get("max_relative_positions", -1)
    norms = [name.strip() for name in stated.get("norm_rel_ebd", "none").lower().split("|")]
    emd = not values["position_biased_input"] and has_position_table
    return ModelConfig(
        **values,
        model_type=model_type,
        enhanced_mask_decoder=stated.get("enhanced_mask_decoder", emd) and has_position_table,
        pos_att_type=terms if stated.get("relative_attention", False) else (),
        max_relative_positions=limit if limit > 0 else values["max_position_embeddings"],
        position_buckets=max(0, stated.get("position_buckets", -1)),
        share_att_key=stated.get("share_att_key", False),
        norm_rel_ebd="layer_norm" if "layer_norm" in norms else "none",
        causal=stated.get("causal", False),
        conv_kernel_size=max(0, stated.get("conv_kernel_size", 0)),
        conv_act=stated.get("conv_act", "tanh"),
    )


def _refuse_unsupported(stated: dict, field: str) -> None:
    plain = {
        "type_vocab_size": 0,
        "conv_groups": 1,
        "embedding_size": stated["hidden_size"],
        "attention_head_size": stated["hidden_size"] // stated["num_attention_heads"],
        "talking_head": False,
    }[field]
    value = stated.get(field, plain)
    if value != plain and not (field == "type_vocab_size" and value < 0):
        raise UserError(f"{field} is {value}; only {plain}, as in every released DeBERTa, is read")


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
        **{name: values[name] for name in _SHARED},
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
        "pooler_hidden_act": "gelu",
        "pooler_dropout": 0.0,
        "pad_token_id": 0,
        # Our own: transformers keeps them and does not use them.
        "enhanced_mask_decoder": config.enhanced_mask_decoder,
        "causal": config.causal,
        # The head's names are the released ones, `lm_predictions.*`.
        "legacy": False,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if task in CLASSIFIERS:
        stated |= label_fields([f"LABEL_{label}" for label in range(num_labels)])
    return stated


def label_fields(names: Sequence[str]) -> dict:
    r"""How `config.json` names a classifier's labels; "a|b" is named a, "a\|b" is named a|b."""
    names = [alternatives(name)[0] for name in names]
    places = {name: place for place, name in enumerate(names)}
    return {"id2label": {str(place): name for name, place in places.items()}, "label2id": places}
