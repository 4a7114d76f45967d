"""Reading a run back: its config, its data, its latest parameters."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax

from deberta_jax import config as schema
from deberta_jax import objectives
from deberta_jax.config import Config
from deberta_jax.data import dataset
from deberta_jax.data.dataset import PreparedData
from deberta_jax.errors import UserError
from deberta_jax.interop.pretrained import to_state_dict
from deberta_jax.interop.released import Released
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.parallel.mesh import MeshConfig, make_mesh
from deberta_jax.prepare import data_directory
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.state import abstract_params


class Run(NamedTuple):
    """A run as its last checkpoint left it.

    Attributes:
        config: what it was started with.
        prepared: its data.
        objective: what it learns.
        step: steps done.
        params: its parameters, laid out over `mesh`.
        mesh: the devices here, whatever the run trained on.
    """

    config: Config
    prepared: PreparedData
    objective: objectives.Objective
    step: int
    params: Any
    mesh: jax.sharding.Mesh

    def released(self) -> Released:
        """The run as a checkpoint with the released names."""
        model = DebertaForMaskedLM(self.config.model)
        return Released(self.config.model, to_state_dict(model, self.params))


def is_run(directory: Path) -> bool:
    """Whether `directory` is a run's workdir rather than a checkpoint."""
    return (directory / "checkpoints").is_dir()


def open_run(workdir: Path) -> Run:
    """Raises `UserError` where `workdir` holds no run, no data or no checkpoint."""
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no run: {path} is missing; train first")
    config = schema.load(path)
    prepared = dataset.load(data_directory(config, workdir))
    objective = objectives.make(config, prepared.unigram_counts)
    # As many devices as the run's batches divide over.
    devices = math.gcd(config.train.batch_size, jax.device_count())
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step, params = checkpoints.restore_params(abstract_params(objective, mesh))
    return Run(config, prepared, objective, step, params, mesh)
