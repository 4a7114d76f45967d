"""A checkpoint's tensors in an Orbax directory: the layout that pods read and write in shards."""

from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from deberta_jax.errors import UserError

_FOLDER = "tensors"


def is_orbax(directory: Path) -> bool:
    """Whether a checkpoint directory is in this layout."""
    return (directory / _FOLDER).is_dir()


def read(directory: Path) -> dict[str, np.ndarray]:
    """The tensors by name; raises `UserError` if the folder cannot be read."""
    path = epath.Path((directory / _FOLDER).absolute())
    try:
        with ocp.PyTreeCheckpointer() as reader:
            metadata = reader.metadata(path).item_metadata.tree
            restore = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in metadata}
            return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=restore))
    except Exception as error:  # Orbax and TensorStore raise many kinds
        first = " ".join(str(error).split())[:300]
        raise UserError(f"{directory / _FOLDER} cannot be read ({first})") from error


def write(tensors: dict[str, np.ndarray], directory: Path) -> None:
    """Writes the tensors, by name, into a folder of `directory`."""
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(epath.Path((directory / _FOLDER).absolute()), tensors)
