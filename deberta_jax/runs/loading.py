"""Checkpoints for other code: what `import deberta_jax` offers."""

import dataclasses
import os
from pathlib import Path

from deberta_jax import storage
from deberta_jax.interop import pretrained, rtd_files, rtd_pair
from deberta_jax.interop.names import LM_HEAD_NAMES
from deberta_jax.interop.released import Released, read_released
from deberta_jax.interop.rtd_pair import Pair
from deberta_jax.interop.tokenizers import PretrainedTokenizer, load_tokenizer
from deberta_jax.model.heads import Deberta
from deberta_jax.runs import directories
from deberta_jax.runs.directories import Kind
from deberta_jax.runs.opening import Run, is_run, open_run, tokenizer_directory
from deberta_jax.runs.writing import model_folder

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


@dataclasses.dataclass(frozen=True)
class Initial:
    """What `train.init` names (`objectives.base.InitialCheckpoint`): a checkpoint, a pair, a run.

    Attributes:
        path: where it is.
        new_parts: what is made new although it has them.
        seed: of new parts.
    """

    path: Path
    new_parts: tuple[str, ...] = ()
    seed: int = 0

    def single(self) -> Released:
        return read_checkpoint(self.path)

    def pair(self) -> Pair:
        if not is_run(self.path):
            return rtd_files.read_pair(storage.local_copy(self.path))
        run = open_run(self.path)
        if set(run.objective.exported) != {"discriminator", "generator"}:
            return Pair(rtd_pair.discriminator_of(run.released()))
        return run_pair(run)


def run_pair(run: Run) -> Pair:
    """Both models of a run by replaced-token detection."""
    discriminator = rtd_pair.discriminator_of(run.released("discriminator"))
    generator = rtd_pair.generator_of(run.released("generator"))
    delta = discriminator.word_table_VE - generator.word_table_VE
    return Pair(discriminator, generator, delta, load_tokenizer(tokenizer_directory(run.workdir)))


def open_checkpoint(path: str | os.PathLike, use: str = "load_pretrained") -> tuple[Released, Path]:
    """A checkpoint or a run as `read_checkpoint` gives it, and its tokenizer's directory.

    Args:
        path: where it is.
        use: what it is for, a key of `directories.READS`.

    Raises:
        UserError: it does not suit, or cannot be read.
    """
    found = directories.require(path, use)
    if found.kind is Kind.CHECKPOINT:
        directory = storage.local_copy(found.path)
        return read_released(directory), directory
    run = open_run(found.path)
    return run.released(), tokenizer_directory(found.path)


def tokenizer_of(path: str | os.PathLike) -> PretrainedTokenizer:
    """The tokenizer of a checkpoint, or of a run."""
    return load_tokenizer(tokenizer_folder(path))


def tokenizer_folder(path: str | os.PathLike) -> Path:
    """Where the tokenizer of a checkpoint, or of a run, lies."""
    directory = storage.user_path(path)
    return tokenizer_directory(directory) if is_run(directory) else directory


def save_pretrained(
    path: str | os.PathLike,
    model: Deberta,
    params,
    *,
    tokenizer=None,
    dtype: str = "float32",
    head_names: str = LM_HEAD_NAMES[0],
) -> None:
    """Writes what `load_pretrained` and `transformers` read.

    Args:
        path: the directory to write.
        model: as `load_pretrained` returned it; its kind decides which head is written.
        params: its parameters.
        tokenizer: anything with `save(directory)`, such as what `load_tokenizer` returns.
        dtype: of the file: "float32", "float16", "bfloat16".
        head_names: a masked LM's in the file: "cls.predictions", which every version of
            `transformers` reads, or "lm_predictions", as released.
    """
    found = directories.require_writable(path, "save_pretrained")
    with model_folder(found.path) as folder:
        pretrained.save(folder, model, params, dtype, head_names=head_names)
        if tokenizer is not None:
            tokenizer.save(folder)
