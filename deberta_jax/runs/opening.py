"""Reading a run back: its config, its data, its latest or its best parameters."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax

from deberta_jax import objectives, schema
from deberta_jax.data import dataset
from deberta_jax.data.dataset import PreparedData, data_directory
from deberta_jax.errors import UserError
from deberta_jax.interop.pretrained import to_state_dict
from deberta_jax.interop.released import Released
from deberta_jax.parallel.mesh import MeshConfig, make_mesh
from deberta_jax.schema import Config
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.state import abstract_params

# The folder of a fine-tuned run's tokenizer, which is its checkpoint's.
TOKENIZER = "tokenizer"


class Run(NamedTuple):
    """A run as its last checkpoint left it, or its best one where it has a `train.best_metric`.

    Attributes:
        config: what it was started with.
        prepared: its data; None where it is a fine-tuned run, which has examples instead.
        objective: what it learns.
        step: steps done.
        params: its parameters, laid out over `mesh`.
        mesh: the devices here, whatever the run trained on.
    """

    config: Config
    prepared: PreparedData | None
    objective: objectives.Objective
    step: int
    params: Any
    mesh: jax.sharding.Mesh

    def released(self) -> Released:
        """The run as a checkpoint with the released names."""
        return Released(self.config.model, to_state_dict(self.objective.model, self.params))


def tokenizer_directory(workdir: Path) -> Path:
    """Where a run's tokenizer lies, as `interop.tokenizers.load_tokenizer` reads it."""
    own = workdir / TOKENIZER
    if own.is_dir():
        return own
    return (
        data_directory(schema.load(workdir / "config.json").data, workdir) / dataset.TOKENIZER_DIR
    )


def is_run(directory: Path) -> bool:
    """Whether `directory` is a run's workdir rather than a checkpoint."""
    return (directory / "checkpoints").is_dir()


def open_run(workdir: Path) -> Run:
    """Raises `UserError` where `workdir` holds no run, no data or no checkpoint."""
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no run: {path} is missing; train first")
    config = schema.load(path)
    prepared = None
    if not (workdir / TOKENIZER).is_dir():
        prepared = dataset.load(data_directory(config.data, workdir))
    objective = objectives.make(config, prepared and prepared.unigram_counts)
    # As many devices as the run's batches divide over.
    devices = math.gcd(config.train.batch_size, jax.device_count())
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    with Checkpoints(workdir, read_only=True) as checkpoints:
        best = checkpoints.best()
        step, params = checkpoints.restore_params(abstract_params(objective, mesh), best)
    return Run(config, prepared, objective, step, params, mesh)
