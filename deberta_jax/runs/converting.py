"""Checkpoints from one layout to another, every tensor carried over bit for bit."""

from collections.abc import Callable
from pathlib import Path

from deberta_jax import storage
from deberta_jax.data.nested import transformer_folder
from deberta_jax.errors import UserError
from deberta_jax.interop import layouts
from deberta_jax.interop.names import LM_HEAD_NAMES
from deberta_jax.interop.released import Released, read_released
from deberta_jax.interop.rtd_export import write_pair
from deberta_jax.runs import directories
from deberta_jax.runs.directories import Kind
from deberta_jax.runs.loading import run_pair
from deberta_jax.runs.opening import Run, open_run, tokenizer_directory
from deberta_jax.runs.writing import model_folder

LAYOUTS: dict[str, Callable] = {
    "transformers": layouts.write_transformers,
    "microsoft": layouts.write_microsoft,
    "orbax": layouts.write_orbax,
}
# What a tokenizer is made of, in any of the layouts that we read.
_TOKENIZER_FILES = (
    "spm.model", "spiece.model", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    "merges.txt", "added_tokens.json", "special_tokens_map.json", "bpe_encoder.bin",
)  # fmt: skip


def convert(
    source: Path,
    target: Path,
    layout: str = "transformers",
    head_names: str = LM_HEAD_NAMES[0],
) -> list[str]:
    """Writes the checkpoint or run in `source` to `target`; returns the names of the files.

    Args:
        source: a checkpoint in any layout, or the workdir of a run.
        target: a new or empty directory.
        layout: a key of `LAYOUTS`.
        head_names: a masked LM's in the layout "transformers", one of `names.LM_HEAD_NAMES`; the
            other layouts have the released ones.

    Raises:
        UserError: `source` holds none, `target` is not empty, or there is no such layout.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    found = directories.require(source, "convert")
    directories.require_writable(target, "convert --to")
    run = None if found.kind is Kind.CHECKPOINT else open_run(source)
    with model_folder(target) as folder:
        if run is not None and len(run.objective.exported) > 1:
            _write_models(run, folder, layout, head_names)
        elif run is not None:
            _write(run.released(), tokenizer_directory(source), folder, layout, head_names)
        else:
            local = storage.local_copy(source)
            _write(read_released(local), transformer_folder(local), folder, layout, head_names)
    return sorted(path.name for path in target.iterdir())


def _write(
    checkpoint: Released, tokenizer: Path, target: Path, layout: str, head_names: str
) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if layout == "transformers":
        layouts.write_transformers(checkpoint, target, head_names)
    else:
        LAYOUTS[layout](checkpoint, target)
    for name in _TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            (target / name).write_bytes(storage.read_bytes(tokenizer / name))


def _write_models(run: Run, target: Path, layout: str, head_names: str) -> None:
    """The first model in `target`, the others in folders of their names; both models of
    replaced-token detection as Microsoft published them, in that layout."""
    first, *others = run.objective.exported
    if layout == "microsoft" and {first, *others} == {"discriminator", "generator"}:
        write_pair(target, run_pair(run), layout=layout)
        return
    tokenizer = tokenizer_directory(run.workdir)
    _write(run.released(first), tokenizer, target, layout, head_names)
    for name in others:
        _write(run.released(name), tokenizer, target / name, layout, head_names)
