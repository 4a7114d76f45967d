"""Writes a whole checkpoint in each of the layouts that others read; no value changes."""

from collections import Counter
from pathlib import Path

from deberta_jax.interop import orbax_params
from deberta_jax.interop.config_json import write_config
from deberta_jax.interop.files import check_finite, write_tensors
from deberta_jax.interop.names import task_of_tensors
from deberta_jax.interop.released import Released
from deberta_jax.interop.torch_file import write_torch


def write_transformers(checkpoint: Released, directory: Path) -> None:
    """`model.safetensors` and `config.json`, as `transformers` saves them."""
    check_finite(checkpoint.tensors, "the checkpoint")
    write_tensors(checkpoint.tensors, directory)
    _write_config(checkpoint, directory)


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
    _write_config(checkpoint, directory, file=config, pos_att_type=terms)


def write_orbax(checkpoint: Released, directory: Path) -> None:
    """The tensors as an Orbax checkpoint, and `config.json`."""
    check_finite(checkpoint.tensors, "the checkpoint")
    orbax_params.write(checkpoint.tensors, directory)
    _write_config(checkpoint, directory)


def _write_config(checkpoint: Released, directory: Path, **spelling: str) -> None:
    tensors = checkpoint.tensors
    labels = len(tensors["classifier.bias"]) if "classifier.bias" in tensors else 2
    dtype = Counter(x.dtype.name for x in tensors.values()).most_common(1)[0][0]
    task = task_of_tensors(tensors)
    write_config(checkpoint.config, directory, task, labels, dtype, **spelling)
