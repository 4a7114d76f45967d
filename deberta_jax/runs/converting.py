"""Checkpoints from one layout to another, every tensor carried over bit for bit."""

import shutil
from pathlib import Path

from deberta_jax.errors import UserError
from deberta_jax.interop import layouts
from deberta_jax.interop.released import Released
from deberta_jax.interop.rtd_export import write_pair
from deberta_jax.runs.loading import open_checkpoint, run_pair
from deberta_jax.runs.opening import Run, is_run, open_run, tokenizer_directory

LAYOUTS = {
    "transformers": layouts.write_transformers,
    "microsoft": layouts.write_microsoft,
    "orbax": layouts.write_orbax,
}
# What a tokenizer is made of, in any of the layouts that we read.
_TOKENIZER_FILES = (
    "spm.model", "spiece.model", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    "merges.txt", "added_tokens.json", "special_tokens_map.json", "bpe_encoder.bin",
)  # fmt: skip


def convert(source: Path, target: Path, layout: str = "transformers") -> list[str]:
    """Writes the checkpoint or run in `source` to `target`; returns the names of the files.

    Args:
        source: a checkpoint in any layout, or the workdir of a run.
        target: a new or empty directory.
        layout: a key of `LAYOUTS`.

    Raises:
        UserError: `source` holds none, `target` is not empty, or there is no such layout.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    if not source.is_dir():
        raise UserError(f"--from={source} is no directory; it must hold a checkpoint or a run")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--to={target} is not empty; name a new directory")
    if is_run(source) and len((run := open_run(source)).objective.exported) > 1:
        _write_models(run, target, layout)
    else:
        checkpoint, tokenizer_directory = open_checkpoint(source)
        _write(checkpoint, tokenizer_directory, target, layout)
    return sorted(path.name for path in target.iterdir())


def _write(checkpoint: Released, tokenizer_directory: Path, target: Path, layout: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    LAYOUTS[layout](checkpoint, target)
    for name in _TOKENIZER_FILES:
        if (tokenizer_directory / name).is_file():
            shutil.copyfile(tokenizer_directory / name, target / name)


def _write_models(run: Run, target: Path, layout: str) -> None:
    """The first model in `target`, the others in folders of their names; both models of
    replaced-token detection as Microsoft published them, in that layout."""
    first, *others = run.objective.exported
    if layout == "microsoft" and {first, *others} == {"discriminator", "generator"}:
        write_pair(target, run_pair(run), layout=layout)
        return
    tokenizer = tokenizer_directory(run.workdir)
    _write(run.released(first), tokenizer, target, layout)
    for name in others:
        _write(run.released(name), tokenizer, target / name, layout)
