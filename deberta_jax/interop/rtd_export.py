"""Writes the two models of replaced token detection for `transformers` and Microsoft's code."""

from pathlib import Path

import numpy as np

from deberta_jax.errors import UserError
from deberta_jax.interop.layouts import write_microsoft, write_transformers
from deberta_jax.interop.pretrained import DTYPES
from deberta_jax.interop.released import WORD_DELTA, Released
from deberta_jax.interop.rtd_pair import Discriminator, Generator, Pair

LAYOUTS = ("transformers", "microsoft")


def write_discriminator(
    directory: Path,
    discriminator: Discriminator,
    *,
    layout: str = "transformers",
    dtype: str = "float32",
    delta: np.ndarray | None = None,
) -> None:
    """Writes a `DebertaV2Model` with the RTD head beside it, as released: `mask_predictions.*`.

    The word table is the sum, E_G + E_Δ. The position table, which only a generator reads, is
    written too where the discriminator has it.

    Args:
        directory: is made if it is not there.
        discriminator: with its summed word table.
        layout: "transformers": `model.safetensors`; "microsoft": `pytorch_model.bin`.
        dtype: of the file: "float32", "float16", "bfloat16".
        delta: [V, E], E_Δ. Microsoft's training reads it from the file, and starts from zero
            where it is missing. It is small beside the table, so it is written in float32 whatever
            `dtype` is. Only the layout "microsoft" has a name for it.

    Raises:
        UserError: `layout` or `dtype` is unknown, or the layout has no name for `delta`.
    """
    checkpoint = _stored(discriminator.released(), layout, dtype)
    if delta is not None:
        if layout != "microsoft":
            raise UserError(f"layout {layout!r} has no name for E_Δ; only 'microsoft' has one")
        checkpoint.tensors[WORD_DELTA] = np.asarray(delta, np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    write = write_microsoft if layout == "microsoft" else write_transformers
    write(checkpoint, directory)


def write_generator(
    directory: Path, generator: Generator, *, layout: str = "transformers", dtype: str = "float32"
) -> None:
    """Writes a masked LM.

    Args:
        directory: is made if it is not there.
        generator: the model.
        layout: "transformers": `model.safetensors` and `config.json`; "microsoft": the published
            names, `pytorch_model.generator.bin` and `generator_config.json`, which may lie beside
            the discriminator's.
        dtype: of the file: "float32", "float16", "bfloat16".

    Raises:
        UserError: `layout` or `dtype` is unknown.
    """
    checkpoint = _stored(generator.released(), layout, dtype)
    directory.mkdir(parents=True, exist_ok=True)
    if layout == "microsoft":
        names = "pytorch_model.generator.bin", "generator_config.json"
        write_microsoft(checkpoint, directory, *names)
    else:
        write_transformers(checkpoint, directory)


def write_pair(
    directory: Path, pair: Pair, *, layout: str = "transformers", dtype: str = "float32"
) -> None:
    """Writes both models and their tokenizer, as `read_pair` reads them.

    The discriminator is written to `directory`. The generator is written to its folder
    `generator/`; with the layout "microsoft" beside the discriminator, under the published names.

    Raises:
        UserError: `layout` or `dtype` is unknown.
    """
    delta = pair.delta if layout == "microsoft" else None
    write_discriminator(directory, pair.discriminator, layout=layout, dtype=dtype, delta=delta)
    if pair.tokenizer is not None:
        pair.tokenizer.save(directory)
    if pair.generator is None:
        return
    own = directory if layout == "microsoft" else directory / "generator"
    write_generator(own, pair.generator, layout=layout, dtype=dtype)
    if pair.tokenizer is not None and own != directory:
        pair.tokenizer.save(own)


def _stored(checkpoint: Released, layout: str, dtype: str) -> Released:
    """The checkpoint with its tensors in the file's type."""
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    tensors = {name: x.astype(DTYPES[dtype]) for name, x in checkpoint.tensors.items()}
    return Released(checkpoint.config, tensors)
