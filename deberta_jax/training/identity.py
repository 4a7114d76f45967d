"""The id of a run: in `identity.json` of its workdir, and in every checkpoint."""

import secrets
from pathlib import Path
from typing import Any

import jax

from deberta_jax import storage
from deberta_jax.errors import UserError
from deberta_jax.parallel import processes

# What else is in the file is the business of `runs.identity`.
FILE, RUN = "identity.json", "run"


def claim(workdir: Path, known: str = "") -> str:
    """The id of the run in `workdir`, which is made where there is none; the same on all processes.

    Args:
        workdir: of the run.
        known: an id that the run has already, by its checkpoints, should the file have none.

    Raises:
        UserError: `identity.json` is damaged, or cannot be written.
    """
    result = [""]

    def read_or_make() -> None:
        values = read(workdir)
        result[0] = values.get(RUN) or known or new_id()
        if RUN not in values:
            storage.write_json(workdir / FILE, {RUN: result[0]} | values)

    processes.on_first(read_or_make)
    return processes.agreed(result[0] if jax.process_index() == 0 else "")


def new_id() -> str:
    """The id of a run that begins."""
    return secrets.token_hex(8)


def read(workdir: Path) -> dict[str, Any]:
    """The identity of a workdir's run; {} where it has none yet, or was begun before there were.

    Raises:
        UserError: it is damaged.
    """
    path = workdir / FILE
    if not path.exists():
        return {}
    values = storage.read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get(RUN, ""), str):
        raise UserError(f"{path} is damaged: it must hold the run's id, as its checkpoints do")
    return values
