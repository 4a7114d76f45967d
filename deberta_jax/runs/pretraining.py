"""Pre-training assembled from its config: data, objective, program, loop."""

import functools
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax

from deberta_jax import objectives, schema, storage
from deberta_jax.data import dataset
from deberta_jax.data.dataset import PreparedData, data_directory
from deberta_jax.data.input import (
    steps_per_epoch,
    tokens_per_step,
    train_batches,
    validation_batches,
)
from deberta_jax.data.tokenizer import MODEL_FILE
from deberta_jax.errors import UserError
from deberta_jax.objectives import Objective
from deberta_jax.parallel.sharding import local_rows
from deberta_jax.runs import directories, identity
from deberta_jax.runs.directories import CONFIG, Kind
from deberta_jax.runs.loading import Initial, tokenizer_folder
from deberta_jax.runs.opening import TOKENIZER, check_tokenizer
from deberta_jax.schema import Config
from deberta_jax.training import loop
from deberta_jax.training.program import make_program
from deberta_jax.training.step_units import StepUnits

# Rows that a model's table may have beyond the tokenizer: room for sharding, not another tokenizer.
SPARE_ROWS = 1024


def pretrain(config: Config, workdir: Path) -> dict[str, float] | None:
    """Trains `config` in `workdir`; returns the last held-out metrics, None if told to stop."""
    if not objectives.kind(config.objective).learns_from_text:
        raise UserError(f"objective {config.objective!r} learns a task: use the verb finetune")
    begins = directories.require_writable(workdir, "train").kind is not Kind.RUN
    prepared = load_data(config, workdir)
    learned = identity.of_data(prepared)
    if not begins:
        _check_goes_on(workdir, prepared, learned)
    objective = objectives.make(config, prepared.unigram_counts)
    if config.train.init and begins:
        _check_initial(config, objective, prepared)
    objective.batch_shapes(config.data.sequence_length, config.train.batch_size)
    program = make_program(config, objective, make_step_units(config, prepared))
    begin: Callable | None = None
    if config.train.init:
        begin = functools.partial(initial_params, config, objective)
    if begin and begins:  # what cannot be begun with is refused before anything is written
        begin = [begin()].pop  # handed over once: the host keeps no copy
    claim_workdir(config, workdir)
    identity.keep(workdir, learned, anew=begins)
    keep_tokenizer(prepared, workdir, anew=begins)
    held_out = held_out_batches(config, objective, prepared, program.mesh)
    return loop.train(
        program,
        lambda sample: train_batches(
            prepared,
            batch_size=config.train.batch_size,
            start_sample=sample,
            **_input(config, objective, program.mesh),
        ),
        lambda params: program.evaluate(params, held_out()),
        config=config.train,
        profile=config.profile,
        seed=config.seed,
        workdir=workdir,
        flops_per_token=objective.flops_per_token(config.data.sequence_length),
        initial_params=begin,
    )


def load_data(config: Config, workdir: Path) -> PreparedData:
    """The prepared data of a run, which fit its config.

    Raises:
        UserError: there is none, it is damaged or does not fit, or `data.dir` names something else.
    """
    directory = data_directory(config.data, workdir)
    unprepared = (Kind.MISSING, Kind.EMPTY, Kind.OTHER, Kind.DATA)
    if config.data.dir and directories.recognise(directory).kind not in unprepared:
        directories.require(directory, "data.dir")
    prepared = dataset.load(directory)
    check_data(config, prepared)
    return prepared


def _check_goes_on(workdir: Path, prepared: PreparedData, learned: identity.Identity) -> None:
    """Raises `UserError` where the workdir's run has learned from other data."""
    check_tokenizer(prepared, workdir / TOKENIZER, f"{workdir} was started")
    advice = (
        "go on with the data that it was started with, or begin another --workdir with "
        f"train.init={workdir}"
    )
    identity.check(workdir, learned, advice)


def _check_initial(config: Config, objective: Objective, prepared: PreparedData) -> None:
    """Raises `UserError` where `train.init` is nothing to begin with, or of another tokenizer."""
    pair = len(objective.exported) > 1
    directories.require(config.train.init, "train.init of rtd" if pair else "train.init")
    source = tokenizer_folder(config.train.init)
    check_tokenizer(prepared, source, f"train.init={config.train.init} was trained")


def initial_params(config: Config, objective: Objective):
    """The parameters of `train.init`, for continued pre-training.

    Raises:
        UserError: that checkpoint is none, or is of another architecture.
    """
    settings = config.train
    path = storage.user_path(settings.init)
    return objective.initial_params(Initial(path, settings.new_parts, config.seed))


def make_step_units(config: Config, prepared: PreparedData) -> StepUnits:
    """The run's units of time, its total steps included."""
    batch_size = config.train.batch_size
    units = StepUnits(tokens_per_step(prepared, batch_size), steps_per_epoch(prepared, batch_size))
    return units.with_total("train.duration", config.train.duration)


def held_out_batches(config: Config, objective: Objective, prepared: PreparedData, mesh):
    """`() -> iterator` over the held-out split: the same rows, masked alike, every time."""
    return functools.partial(
        validation_batches,
        prepared,
        batch_size=config.train.batch_size,
        num_batches=config.train.eval_batches,
        **_input(config, objective, mesh),
    )


def check_data(config: Config, prepared: PreparedData) -> None:
    """Raises `UserError` where the prepared data are not what the model expects."""
    length, prepared_length = config.data.sequence_length, prepared.metadata.sequence_length
    if length != prepared_length:
        raise UserError(
            f"data.sequence_length is {length}, but {prepared.directory} was prepared with "
            f"{prepared_length}"
        )
    rows, tokens = config.model.vocab_size, prepared.metadata.vocab_size
    if not tokens <= rows <= tokens + SPARE_ROWS:
        raise UserError(
            f"model.vocab_size is {rows}, but the data in {prepared.directory} have {tokens} "
            f"tokens; it must be {tokens} to {tokens + SPARE_ROWS}"
        )
    uses_positions = config.model.position_biased_input or config.model.decodes_with_emd
    if uses_positions and length > config.model.max_position_embeddings:
        raise UserError(
            f"data.sequence_length {length} is more than model.max_position_embeddings "
            f"{config.model.max_position_embeddings}"
        )


def keep_tokenizer(prepared: PreparedData, workdir: Path, anew: bool = False) -> None:
    """Copies the data's tokenizer into the workdir, so that a run is whole without its data.

    With `anew` it replaces one that is there, of a start that came to no checkpoint.
    """
    target = workdir / TOKENIZER
    if jax.process_index() != 0 or ((target / MODEL_FILE).exists() and not anew):
        return
    storage.remove_directory(target)
    source = storage.as_path(prepared.tokenizer.path).parent
    storage.copy_directory(source, target, last=MODEL_FILE)


def claim_workdir(config: Config, workdir: Path) -> None:
    """Writes `config.json`, or compares with the one that the workdir was started with.

    Raises:
        UserError: it was started with another model, or with an objective whose parameters or
            optimizer groups are others, listing every field that differs.
    """
    path = workdir / CONFIG
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            schema.save(config, path)
        return
    before = schema.load(path)
    if differing := schema.differences(before, config, "model."):
        raise UserError(
            f"{workdir} was started with another model ({'; '.join(differing)}); "
            "use those values, or another --workdir"
        )
    if changed := schema.differences(before, config):
        differing = [x for x in changed if x.startswith(("objective", "rtd.", "task."))]
        if differing and _state_shapes(before) != _state_shapes(config):
            raise UserError(
                f"{workdir} was started with another objective ({'; '.join(differing)}), whose "
                "checkpoints hold other arrays; use those values, or another --workdir"
            )
        print(f"changed since {workdir} was started: {'; '.join(changed)}")
        if jax.process_index() == 0:
            schema.save(config, path)


def _state_shapes(config: Config):
    """Shapes of the parameters by path and group: what a checkpoint's arrays are."""
    objective = objectives.make(config)
    params = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))
    labels = objective.parameter_groups(params)
    leaves = jax.tree.leaves_with_path(params)
    return [
        (path, x.shape, group)
        for (path, x), group in zip(leaves, jax.tree.leaves(labels), strict=True)
    ]


def _input(config: Config, objective: Objective, mesh) -> dict:
    return {
        "config": config.data,
        "batch_maker": objective.batch_maker,
        "seed": config.seed,
        "rows": local_rows(config.train.batch_size, mesh),
    }
