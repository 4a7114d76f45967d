"""Checkpoints for other code: what `import deberta_jax` offers."""

import os
from pathlib import Path

from deberta_jax.errors import UserError
from deberta_jax.interop import pretrained
from deberta_jax.interop.released import Released, read_released
from deberta_jax.interop.tokenizers import PretrainedTokenizer, load_tokenizer
from deberta_jax.model.heads import Deberta
from deberta_jax.runs.opening import is_run, open_run, tokenizer_directory

__all__ = ["load_pretrained", "load_tokenizer", "read_checkpoint", "save_pretrained"]


def load_pretrained(path: str | os.PathLike, task: str | None = None, **options):
    """A released checkpoint, or one of our workdirs, as (model, params).

    `model.apply({"params": params}, input_ids, attention_mask)` returns the last hidden state
    [B, L, E], or the logits of `task`: masked_lm [B, L, V] (or at `masked_positions_BP` only),
    replaced_token [B, L], sequence_classification [B, labels], token_classification
    [B, L, labels], question_answering [B, L, 2] (start, end), multiple_choice [B, choices].

    Args:
        path: a directory with `config.json` and `model.safetensors` or `pytorch_model.bin` (also
            sharded), or the workdir of a run.
        task: whose head; None for the bare model.
        **options: `new` and `ignore`: beginnings of tensor names that may be missing (they are
            initialised afresh) or left out; `num_labels` of a new classifier; `dtype` that the
            model computes in ("float32", "bfloat16"); `seed` of what is new.

    Raises:
        UserError: a file is missing or damaged; or tensors are missing, extra or misshapen, all of
            which are listed with both shapes.
    """
    return pretrained.build(*read_checkpoint(path), task, **options)


def read_checkpoint(path: str | os.PathLike) -> Released:
    """The config and the tensors, under released names, of a checkpoint or of a run."""
    return open_checkpoint(path)[0]


def open_checkpoint(path: str | os.PathLike) -> tuple[Released, Path]:
    """A checkpoint or a run as `read_checkpoint` gives it, and its tokenizer's directory."""
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory; it must hold a checkpoint or a run")
    if not is_run(directory):
        return read_released(directory), directory
    run = open_run(directory)
    return run.released(), tokenizer_directory(directory)


def tokenizer_of(path: str | os.PathLike) -> PretrainedTokenizer:
    """The tokenizer of a checkpoint, or of a run."""
    directory = Path(path).expanduser()
    return load_tokenizer(tokenizer_directory(directory) if is_run(directory) else directory)


def save_pretrained(
    path: str | os.PathLike, model: Deberta, params, *, tokenizer=None, dtype: str = "float32"
) -> None:
    """Writes what `load_pretrained` and `transformers` read.

    Args:
        path: the directory to write.
        model: as `load_pretrained` returned it; its kind decides which head is written.
        params: its parameters.
        tokenizer: anything with `save(directory)`, such as what `load_tokenizer` returns.
        dtype: of the file: "float32", "float16", "bfloat16".
    """
    directory = Path(path).expanduser()
    pretrained.save(directory, model, params, dtype)
    if tokenizer is not None:
        tokenizer.save(directory)
