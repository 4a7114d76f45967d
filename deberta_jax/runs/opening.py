"""Reading a run back: its config, its tokenizer, its latest or its best parameters, its data."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from deberta_jax import objectives, schema, storage
from deberta_jax.data import dataset
from deberta_jax.data.dataset import PreparedData, data_directory
from deberta_jax.data.sentencepiece_model import holds_model
from deberta_jax.data.tokenizer import MODEL_FILE, Tokenizer, write_pretrained
from deberta_jax.errors import UserError
from deberta_jax.interop.released import Released
from deberta_jax.interop.tokenizers import load_tokenizer
from deberta_jax.objectives import Objective
from deberta_jax.parallel.mesh import MeshConfig, make_mesh
from deberta_jax.runs import identity
from deberta_jax.runs.directories import CONFIG, Kind, recognise
from deberta_jax.schema import Config
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.finite import check_finite
from deberta_jax.training.state import abstract_params

# The folder of a run's tokenizer: its data's, or its checkpoint's where it is fine-tuned.
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Run:
    """A run as its last checkpoint left it, or its best one where it has a `train.best_metric`.

    Attributes:
        workdir: where it is.
        config: what it was started with.
        objective: what it learns, without the text's token frequencies.
        step: steps done.
        params: its parameters, laid out over `mesh`.
        mesh: the devices here, whatever the run trained on.
    """

    workdir: Path
    config: Config
    objective: Objective
    step: int
    params: Any
    mesh: jax.sharding.Mesh

    @functools.cached_property
    def prepared(self) -> PreparedData:
        """The text that it learns from. Where it is another text than it learned from, a line says
        so.

        Raises:
            UserError: it learned from examples instead, or the data is no longer there, or is of
                another tokenizer.
        """
        if not self.objective.learns_from_text:
            raise UserError(f"{self.workdir} is a fine-tuned run: it has no prepared data")
        prepared = dataset.load(data_directory(self.config.data, self.workdir))
        check_tokenizer(prepared, self.workdir / TOKENIZER, f"{self.workdir} was trained")
        now = identity.of_data(prepared)
        if differing := identity.differences(identity.read(self.workdir), now):
            print(
                f"note: the data in {prepared.directory} have changed since the run was started "
                f"({'; '.join(differing)})"
            )
        return prepared

    def released(self, name: str | None = None) -> Released:
        """One of the run's models, its own unless named, as a checkpoint with released names."""
        return self.objective.released(self.params, name or self.objective.exported[0])

    def write_tokenizer(self, directory: Path) -> None:
        """Writes the tokenizer's files as an export carries them."""
        source = tokenizer_directory(self.workdir)
        if self.objective.learns_from_text:
            limit = self.config.model.max_position_embeddings
            tokenizer = Tokenizer(source / MODEL_FILE)
            write_pretrained(tokenizer, directory, model_max_length=limit)
        else:
            load_tokenizer(source).save(directory)


def tokenizer_directory(workdir: Path) -> Path:
    """Where a run's tokenizer lies, as `interop.tokenizers.load_tokenizer` reads it."""
    own = workdir / TOKENIZER
    if own.is_dir():
        return own
    # Runs of version 0.1 left it with their data.
    config = schema.load(workdir / CONFIG)
    return data_directory(config.data, workdir) / dataset.TOKENIZER_DIR


def is_run(directory: Path) -> bool:
    """Whether `directory` is a run's workdir rather than a checkpoint."""
    return recognise(directory).kind in (Kind.RUN, Kind.FINETUNED, Kind.STARTED)


def check_tokenizer(prepared: PreparedData, directory: Path, owner: str) -> None:
    """Raises `UserError` where the tokenizer in `directory` is another than that of the data.

    A directory without a unigram tokenizer says nothing.
    """
    if holds_model(directory) and Tokenizer(directory).pieces != prepared.tokenizer.pieces:
        raise UserError(
            f"{owner} with another tokenizer ({directory}) than the data in {prepared.directory}: "
            "every id would mean another piece; prepare the data with it (data.tokenizer)"
        )


def open_run(workdir: storage.PathLike) -> Run:
    """Raises `UserError` where `workdir` holds no run or no checkpoint, or one that is not finite.

    Its data is not needed.
    """
    workdir = storage.user_path(workdir)
    path = workdir / CONFIG
    if not path.exists():
        raise UserError(f"{workdir} holds no run: {path} is missing; train first")
    config = schema.load(path)
    objective = objectives.make(config)
    # As many devices as the run's batches divide over.
    devices = math.gcd(config.train.batch_size, jax.device_count())
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    with Checkpoints(workdir, read_only=True) as checkpoints:
        best = checkpoints.best()
        step, params = checkpoints.restore_params(abstract_params(objective, mesh), best)
    check_finite(params, f"the checkpoint of step {step} in {workdir}")
    return Run(workdir, config, objective, step, params, mesh)
