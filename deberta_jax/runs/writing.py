"""A folder of a model that is written whole or not at all, and that nothing older lies in."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from deberta_jax import storage
from deberta_jax.errors import UserError
from deberta_jax.interop.tokenizer_files import SAVED

# Each group belongs together: of two models' files, those that are read first would decide.
_WEIGHTS = (
    "tensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model.generator.bin",
    "pytorch_model.discriminator.bin", "generator_config.json", "generator", "discriminator",
    "model.onnx",
)  # fmt: skip
# What is superseded by safetensors of another number of shards.
_SHARDS = (
    "model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors",
)  # fmt: skip


@contextlib.contextmanager
def model_folder(directory: Path, weights: bool = True) -> Iterator[Path]:
    """Gives an empty folder to write a model to, its tokenizer or both; it becomes `directory`.

    In a directory that is there, files of their names are replaced and others stay. Where writing
    fails it is as it was.

    Args:
        directory: to be made, or written anew.
        weights: whether the model's weights are written, not a graph of weights that stay.

    Raises:
        UserError: the directory has files of another model or tokenizer that would stay beside the
            new ones, or it cannot be written.
    """
    dropped = _SHARDS if weights else ()
    with (
        storage.one_line(directory),
        storage.replacing(directory, last="config.json", dropped=dropped) as unfinished,
    ):
        yield Path(unfinished)
        names = {path.name for path in unfinished.iterdir()}
        if weights:
            _refuse_stale(directory, _WEIGHTS, names, "model")
        if names & set(SAVED):
            _refuse_stale(directory, SAVED, names, "tokenizer")


def _refuse_stale(directory: Path, group: Iterable[str], names: set[str], what: str) -> None:
    for name in group:
        if name not in names and (directory / name).exists():
            raise UserError(
                f"{directory / name} belongs to another {what}, and would be taken for this one's; "
                "remove it, or name a new directory"
            )
