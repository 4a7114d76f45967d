"""The id of a run: in `run.json` of its workdir, and in every checkpoint."""

import secrets
import time
from pathlib import Path

import jax

from deberta_jax import storage
from deberta_jax.errors import UserError
from deberta_jax.parallel import processes

FILE = "run.json"


def claim(workdir: Path, known: str = "") -> str:
    """The id of the run in `workdir`, which is made where there is none; the same on all processes.

    Args:
        workdir: of the run.
        known: an id that the run has already, by its checkpoints, should `run.json` be missing.

    Raises:
        UserError: `run.json` is damaged, or cannot be written.
    """
    result = [""]

    def read_or_make() -> None:
        path = workdir / FILE
        if path.exists():
            result[0] = _read(path)
            return
        result[0] = known or f"{time.strftime('%Y%m%d', time.gmtime())}-{secrets.token_hex(6)}"
        storage.write_json(path, {"id": result[0]})

    processes.on_first(read_or_make)
    return processes.agreed(result[0] if jax.process_index() == 0 else "")


def _read(path: Path) -> str:
    values = storage.read_json(path)
    stated = values.get("id") if isinstance(values, dict) else None
    if not isinstance(stated, str) or not stated:
        raise UserError(f"{path} is damaged: it must hold the run's id, as its checkpoints do")
    return stated
