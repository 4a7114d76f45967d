"""What the verbs do, as functions: `import deberta_jax; deberta_jax.train(config, workdir)`.

A config is a recipe's `ConfigDict`, or a checked `deberta_jax.schema.Config`; paths are text or
`pathlib.Path`. A mistake that the user can mend raises `deberta_jax.UserError`, whose message is
one line.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, TypeAlias

import jax

from deberta_jax import locks, schema, storage
from deberta_jax.data.dataset import data_directory
from deberta_jax.data.metadata import Metadata
from deberta_jax.errors import UserError
from deberta_jax.evaluation import finetuning_scores
from deberta_jax.interop.names import LM_HEAD_NAMES
from deberta_jax.interop.tokenizers import load_tokenizer
from deberta_jax.parallel import processes
from deberta_jax.preparation import pipeline
from deberta_jax.report.run_overview import plot_run
from deberta_jax.runs import directories, exporting
from deberta_jax.runs.converting import convert as _convert
from deberta_jax.runs.evaluating import held_out_metrics
from deberta_jax.runs.finetuning import finetune_seed, open_session
from deberta_jax.runs.loading import load_pretrained, read_checkpoint, save_pretrained
from deberta_jax.runs.opening import open_run
from deberta_jax.runs.pretraining import pretrain
from deberta_jax.schema import Config

__all__ = [
    "UserError", "convert", "evaluate", "export", "finetune", "load_pretrained", "load_tokenizer",
    "open_run", "prepare", "read_checkpoint", "save_pretrained", "train",
]  # fmt: skip

Path_: TypeAlias = str | os.PathLike
# ml_collections has no types: a `ConfigDict` is anything to a checker.
AnyConfig: TypeAlias = Any


def prepare(config: AnyConfig, workdir: Path_, *, overwrite: bool = False) -> Metadata:
    """Makes the tokenizer and the packed sequences that `config.data` describes.

    Args:
        config: the run's; `data` is read.
        workdir: of the run. The data goes to `data.dir`, or to `data` in the workdir.
        overwrite: remake what is there already.

    Returns:
        What was prepared: the settings, and counts of documents, tokens and sequences.
    """
    data = _checked(config).data
    directory = data_directory(data, _path(workdir))
    directories.require_writable(directory, "prepare")
    with locks.held(directory, "prepare"):
        return pipeline.prepare(data, directory, overwrite=overwrite)


def train(config: AnyConfig, workdir: Path_) -> dict[str, float] | None:
    """Pre-trains, from the workdir's last checkpoint if it has one; its data is prepared before.

    Returns:
        The last held-out metrics ("eval/loss", ...), or None if a signal stopped the run before its
        end: the same call continues it.
    """
    checked, directory = _checked(config), _path(workdir)
    directories.require_writable(directory, "train")
    with processes.alone_in(directory, "train"):
        metrics = pretrain(checked, directory)
        if metrics is not None:
            _draw_curves(directory)
    return metrics


def finetune(
    config: AnyConfig, workdir: Path_, *, init: Path_ | None = None, seeds: int = 1
) -> dict[int, dict[str, float]] | None:
    """Learns a task `seeds` times, each in `seed_S` of the workdir, and writes `results.json`.

    Args:
        config: a task's recipe (`configs/finetune/`).
        workdir: where the runs and their results go.
        init: the checkpoint to begin with, or the workdir of a run; `train.init` unless given.
        seeds: how many times, with the seeds from `config.seed` on.

    Returns:
        By seed, the scores of its best checkpoint; None if a signal stopped it before its end.
    """
    checked, directory = _checked(config), _path(workdir)
    if init:
        own = dataclasses.replace(checked.train, init=os.fspath(init))
        checked = dataclasses.replace(checked, train=own)
    directories.require_writable(directory, "finetune --workdir")
    with processes.alone_in(directory, "finetune"):
        return _finetune(checked, directory, seeds)


def _finetune(config: Config, workdir: Path, seeds: int) -> dict[int, dict[str, float]] | None:
    session = open_session(config)
    scores = {}
    for seed in range(config.seed, config.seed + seeds):
        result = finetune_seed(session, seed, workdir / f"seed_{seed}")
        if result is None:
            return None
        _draw_curves(workdir / f"seed_{seed}")
        scores[seed] = result
    if jax.process_index() == 0:
        finetuning_scores.write(workdir, config.task.name, scores)
    return scores


def evaluate(workdir: Path_) -> dict[str, float]:
    """The held-out metrics of a pre-training run: {"eval/loss": nats, "eval/mlm_accuracy": ...}."""
    directories.require(workdir, "api.evaluate")
    return held_out_metrics(open_run(_path(workdir)))


def export(
    source: Path_,
    out: Path_,
    *,
    onnx: bool = False,
    max_length: int = 512,
    head_names: str = LM_HEAD_NAMES[0],
) -> None:
    """Writes a run as files that `transformers` and `load_pretrained` read.

    Args:
        source: the workdir of a run, fine-tuned or not; with `onnx` also a checkpoint.
        out: the directory to write.
        onnx: whether to write `model.onnx` too.
        max_length: tokens of the longest input of `model.onnx`.
        head_names: a masked LM's in the file: "cls.predictions", which every version of
            `transformers` reads, or "lm_predictions", as released.
    """
    exporting.export(
        _path(source), _path(out), onnx=onnx, max_length=max_length, head_names=head_names
    )


def convert(
    source: Path_,
    target: Path_,
    layout: str = "transformers",
    head_names: str = LM_HEAD_NAMES[0],
) -> list[str]:
    """Writes a checkpoint in another layout: "transformers", "microsoft" or "orbax".

    `head_names` are a masked LM's in the layout "transformers", as in `export`.

    Returns:
        The names of the files.
    """
    return _convert(_path(source), _path(target), layout, head_names)


def _draw_curves(workdir: Path) -> None:
    if jax.process_index() == 0:
        plot_run(workdir)


def _checked(config: AnyConfig) -> Config:
    """The config, `data.dir` absolute: a run is opened from other working directories too."""
    checked = config if isinstance(config, Config) else schema.freeze(config)
    if not checked.data.dir or storage.is_url(checked.data.dir):
        return checked
    own = os.path.abspath(os.path.expanduser(checked.data.dir))
    return dataclasses.replace(checked, data=dataclasses.replace(checked.data, dir=own))


def _path(path: Path_) -> Path:
    return storage.user_path(path)
