"""Released tensors to our parameters and back: every one accounted for, no value changed."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl import logging

from deberta_jax.errors import UserError
from deberta_jax.interop.config_json import (
    CLASSIFIERS,
    head_fields,
    label_fields,
    write_config,
)
from deberta_jax.interop.files import check_finite, write_tensors
from deberta_jax.interop.names import (
    HEAD_NAMES,
    LM_HEAD_NAMES,
    LM_PREFIX,
    POSITION_TABLE,
    RTD_PREFIX,
    UNTIED_DECODER,
    entries,
    with_head_names,
)
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.heads import Deberta
from deberta_jax.model.task_heads import TASK_MODELS, task_of

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def build(
    config: ModelConfig,
    tensors: Mapping[str, np.ndarray],
    task: str | None = None,
    new: Sequence[str] = (),
    ignore: Sequence[str] = (),
    num_labels: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> tuple[Deberta, dict]:
    """A model of `task` and its float32 parameters, from tensors with released names.

    Args:
        config: the architecture.
        tensors: by their names in a released checkpoint.
        task: a key of `model.task_heads.TASK_MODELS`; None for the bare model.
        new: beginnings of tensor names that may be missing; those are initialised afresh. With
            "lm_predictions." a masked LM is made of a discriminator, its head initialised afresh.
        ignore: beginnings of tensor names that may be there without a place for them.
        num_labels: labels of a new classifier; otherwise as many as the tensors have.
        dtype: what the model computes in.
        seed: of the initialisation of what is new.

    Raises:
        UserError: tensors are missing, extra or misshapen: all are listed, with both shapes. Or one
            holds a NaN or an infinity. Or a masked LM is asked of a discriminator, whose file holds
            the head of its generator.
    """
    if task not in TASK_MODELS:
        raise UserError(f"task is {task!r}; it must be one of {', '.join(map(str, TASK_MODELS))}")
    compute = ComputeConfig(dtype=dtype)
    model = TASK_MODELS[task](config, compute, **_label_options(task, tensors, num_labels))
    return model, from_state_dict(model, tensors, new=new, ignore=ignore, seed=seed)


def save(
    directory: Path,
    model: Deberta,
    params,
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 10**9,
    label_names: Sequence[str] = (),
    head_names: str = LM_HEAD_NAMES[0],
) -> None:
    """Writes `model.safetensors` and `config.json`, which `transformers` reads too.

    `label_names` are a classifier's, in the order of its outputs; `head_names` are a masked LM's,
    one of `names.LM_HEAD_NAMES`.
    """
    tensors = to_state_dict(model, params)
    write(directory, model, tensors, dtype, max_shard_bytes, label_names, head_names=head_names)


def write(
    directory: Path,
    model: Deberta,
    tensors: Mapping[str, np.ndarray],
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 10**9,
    label_names: Sequence[str] = (),
    problem_type: str | None = None,
    head_names: str = LM_HEAD_NAMES[0],
) -> None:
    """As `save`, from tensors with released names; some may be beside the model's own.

    `problem_type` tells the pipeline of `transformers` whether a sequence classifier has classes,
    labels of which a text has several, or a number.

    Raises:
        UserError: a tensor is not finite, in that type. Nothing is written.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    with np.errstate(over="ignore"):  # an infinity is named by its tensor below
        tensors = {name: x.astype(DTYPES[dtype]) for name, x in tensors.items()}
    check_finite(tensors, f"what would be written to {directory} as {dtype}")
    if task_of(model) == "masked_lm":
        tensors = with_head_names(tensors, head_names)
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, directory, max_shard_bytes)
    labels = getattr(model, "num_labels", 2)
    spelling: dict[str, Any] = dict(head_fields(tensors))
    if task_of(model) in CLASSIFIERS and len(label_names) == labels:
        spelling |= label_fields(label_names)
    if problem_type and task_of(model) == "sequence_classification":
        spelling["problem_type"] = problem_type
    write_config(model.config, directory, task_of(model), labels, dtype, **spelling)


def to_state_dict(model: Deberta, params) -> dict[str, np.ndarray]:
    """Our parameters under the names, and in the layouts, of a released checkpoint."""
    flat = {path: np.asarray(leaf) for path, leaf in _by_path(params).items()}
    return {
        entry.key: np.ascontiguousarray(entry.layout.to_theirs(flat[entry.path][entry.part]))
        for entry in entries(model.config, task_of(model))
    }


def from_state_dict(
    model: Deberta,
    tensors: Mapping[str, np.ndarray],
    *,
    new: Sequence[str] = (),
    ignore: Sequence[str] = (),
    seed: int = 0,
) -> dict:
    """Our parameters from a state dict with released names; see `build` for the arguments."""
    task, config = task_of(model), model.config
    wanted = {entry.key: entry for entry in entries(config, task)}
    if task == "masked_lm":
        tensors = _without_foreign_head(tensors, tuple(new), tuple(ignore))
    like = _shapes(model)
    flat = {path: np.zeros(leaf.shape, np.float32) for path, leaf in _by_path(like).items()}
    _check(wanted, tensors, flat, tuple(new), tuple(ignore))
    check_finite({key: tensors[key] for key in wanted if key in tensors}, "the checkpoint")
    if any(key not in tensors for key in wanted):
        fresh = jax.jit(functools.partial(_init, model))(jax.random.key(seed))
        flat = {path: np.array(leaf) for path, leaf in _by_path(fresh).items()}
    for key, entry in wanted.items():
        if key in tensors:
            part = flat[entry.path][entry.part]
            flat[entry.path][entry.part or ...] = entry.layout.to_ours(tensors[key], part.shape)
    return jax.tree.unflatten(jax.tree.structure(like), flat.values())


def _without_foreign_head(tensors, new, ignore) -> Mapping[str, np.ndarray]:
    """The tensors that a masked LM is made of, without a head that is not this body's, or untied.

    Released v3 checkpoints hold `mask_predictions`, the head of the body that they hold, beside
    `lm_predictions`, whose body is the generator.
    """
    names = {name.split(".")[0] for name in tensors}
    if names >= {"lm_predictions", "mask_predictions"} and not RTD_PREFIX.startswith(ignore):
        what = (
            "this is a discriminator (it has mask_predictions.*), and its lm_predictions.* head "
            "belongs to the generator's body: its logits would be noise. Load the generator, or "
        )
    elif UNTIED_DECODER in tensors and not UNTIED_DECODER.startswith(ignore):
        what = (
            "the masked-LM head has a matrix of its own (tie_word_embeddings is false); here it is "
            "the word table. Tie it before saving, or "
        )
    else:
        return tensors
    if not LM_PREFIX.startswith(new):
        raise UserError(
            f'{what}pass new=["lm_predictions."] for a fresh head to train '
            "(--config.train.new_parts=\"('lm_head',)\")"
        )
    return {name: x for name, x in tensors.items() if not name.startswith(LM_PREFIX)}


def shapes(model: Deberta) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of such a model's checkpoint, by its released name."""
    leaves = {path: np.zeros(leaf.shape, bool) for path, leaf in _by_path(_shapes(model)).items()}
    return {
        entry.key: entry.layout.to_theirs(leaves[entry.path][entry.part]).shape
        for entry in entries(model.config, task_of(model))
    }


def _shapes(model: Deberta):
    """Shapes and types of the model's parameters."""
    return jax.eval_shape(functools.partial(_init, model), jax.random.key(0))


def _init(model: Deberta, rng):
    ids = jnp.ones((1, 1, 8) if task_of(model) == "multiple_choice" else (1, 8), jnp.int32)
    return nn.unbox(model.init(rng, ids))["params"]


def _by_path(tree) -> dict:
    """Every leaf by its "/"-separated path, in the tree's order."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def _label_options(task, tensors, num_labels) -> dict:
    """The labels of a classifier: as asked for, else as many as the file's has."""
    if task not in CLASSIFIERS:
        return {}
    stored = tensors.get("classifier.bias")
    return {"num_labels": num_labels or (2 if stored is None else len(stored))}


def _check(wanted, tensors, flat, new, ignore) -> None:
    """Raises `UserError` unless every tensor has a place, and every place its tensor."""
    shapes = {}
    for key, entry in wanted.items():
        part = flat[entry.path][entry.part]
        shapes[key] = entry.layout.to_theirs(part).shape
    missing = [
        f"{key} {shapes[key]}" for key in wanted if key not in tensors and not key.startswith(new)
    ]
    extra = [name for name in tensors if name not in wanted and not name.startswith(ignore)]
    other_heads = [name for name in extra if name.startswith((*HEAD_NAMES, POSITION_TABLE))]
    extra = [f"{name} {tensors[name].shape}" for name in extra if name not in other_heads]
    misshapen = [
        f"{key} {tensors[key].shape} for {shapes[key]}"
        for key in wanted
        if key in tensors and tensors[key].shape != shapes[key]
    ]
    kinds = (("missing", missing), ("extra", extra), ("misshapen", misshapen))
    problems = [f"{kind}: {', '.join(names)}" for kind, names in kinds if names]
    if problems:
        raise UserError(
            f"the checkpoint does not fit the model; {'; '.join(problems)}. "
            "`new` and `ignore` name what may be missing and what may be left out"
        )
    if other_heads:
        logging.warning("left out, heads of other tasks: %s", ", ".join(sorted(other_heads)))
