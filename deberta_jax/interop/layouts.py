"""Writes a whole checkpoint in each of the layouts that others read; no value changes."""

from collections import Counter
from pathlib import Path
from typing import Any

from deberta_jax.interop import orbax_params
from deberta_jax.interop.config_json import head_fields, write_config
from deberta_jax.interop.files import check_finite, write_tensors
from deberta_jax.interop.names import LM_HEAD_NAMES, task_of_tensors, with_head_names
from deberta_jax.interop.released import Released
from deberta_jax.interop.torch_file import write_torch


def write_transformers(
    checkpoint: Released, directory: Path, head_names: str = LM_HEAD_NAMES[0]
) -> None:
    """`model.safetensors` and `config.json`, as `transformers` saves them.

    `head_names` are a masked LM's, one of `names.LM_HEAD_NAMES`; beside another head, as in a
    discriminator's file, they stay the released ones.
    """
    check_finite(checkpoint.tensors, "the checkpoint")
    tensors = checkpoint.tensors
    if task_of_tensors(tensors) == "masked_lm":
        tensors = with_head_names(tensors, head_names)
    write_tensors(tensors, directory)
    _write_config(checkpoint, directory, **head_fields(tensors))


def write_microsoft(
    checkpoint: Released,
    directory: Path,
    weights: str = "pytorch_model.bin",
    config: str = "config.json",
) -> None:
    """`pytorch_model.bin` under the released names, and a config in the original's spelling."""
    check_finite(checkpoint.tensors, "the checkpoint")
    write_torch(checkpoint.tensors, directory / weights)
    terms = "|".join(checkpoint.config.pos_att_type)
    fields = head_fields(checkpoint.tensors)
    _write_config(checkpoint, directory, file=config, pos_att_type=terms, **fields)


def write_orbax(checkpoint: Released, directory: Path) -> None:
    """The tensors as an Orbax checkpoint, and `config.json`."""
    check_finite(checkpoint.tensors, "the checkpoint")
    orbax_params.write(checkpoint.tensors, directory)
    _write_config(checkpoint, directory, **head_fields(checkpoint.tensors))


def _write_config(checkpoint: Released, directory: Path, **spelling: Any) -> None:
    tensors = checkpoint.tensors
    labels = len(tensors["classifier.bias"]) if "classifier.bias" in tensors else 2
    dtype = Counter(x.dtype.name for x in tensors.values()).most_common(1)[0][0]
    task = task_of_tensors(tensors)
    write_config(checkpoint.config, directory, task, labels, dtype, **spelling)
