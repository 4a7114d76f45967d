"""The training step of a run compiled for TPUs that are not there, alone or in variants."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np

from deberta_jax import objectives, schema
from deberta_jax.errors import UserError
from deberta_jax.estimates.cost import estimate_lowered, tpu_devices
from deberta_jax.estimates.report import Job, Report, compiled_report, too_large_report
from deberta_jax.objectives import Objective
from deberta_jax.parallel import sharding
from deberta_jax.parallel.chips import Chip, check_topology
from deberta_jax.parallel.mesh import MeshConfig
from deberta_jax.schema import Config
from deberta_jax.training.program import TrainProgram, make_program
from deberta_jax.training.step_units import StepUnits

# Rematerialisation, the fastest first.
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """The training step of a run for TPUs that are not there, not yet compiled.

    Attributes:
        job: what it is.
        devices: of its mesh, in order.
        chip: the kind of the devices.
        step: the lowered program.
    """

    job: Job
    devices: Sequence[jax.Device]
    chip: Chip
    step: jax.stages.Lowered

    def compile(self) -> Report:
        """What the compiler says of it.

        Raises:
            UserError: the compiler refuses it for another reason than its size.
        """
        try:
            estimate = estimate_lowered(self.step, self.chip.name)
            return compiled_report(self.job, self.devices, self.chip, estimate)
        except jax.errors.JaxRuntimeError as error:
            report = too_large_report(self.job, self.devices, self.chip, str(error))
            if report is None:
                reason = " ".join(str(error).split())
                raise UserError(f"the compiler refuses it: {reason}") from error
            return report


def compile_step(config: Config, topology: str, slices: int = 1) -> Report:
    """Compiles the training step of `config` for `slices` slices of a topology.

    Raises:
        UserError: there is no such topology, or the config cannot run on it for another reason
            than its size.
    """
    return lower_for(config, topology, slices).compile()


def lower_for(config: Config, topology: str, slices: int = 1) -> LoweredStep:
    """Lowers the training step of `config` for `slices` slices of a topology.

    Raises:
        UserError: there is no such topology, or the config cannot run on it.
    """
    chip = check_topology(topology)
    objective = objectives.make(config)
    program = program_for(config, tpu_devices(topology, slices), objective)
    job = _job(config, program, objective, topology, slices)
    step = lower_step(config, program, objective)
    return LoweredStep(job, list(program.mesh.devices.flat), chip, step)


def program_for(config: Config, devices, objective: Objective) -> TrainProgram:
    """The program of a run of `objective` on `devices`, without its data.

    Raises:
        UserError: as `make_program`, or a duration is stated in epochs.
    """
    for name, value in schema.flatten(config).items():
        if name.startswith(("train.", "optimizer.")) and "epoch" in str(value):
            raise UserError(
                f"{name} is {value!r}: without data an epoch has no length; state it in steps, "
                "tokens or %"
            )
    units = StepUnits(config.train.batch_size * sequence_length(config), math.inf)
    total = units.steps("train.duration", config.train.duration)
    units = dataclasses.replace(units, total_steps=total)
    return make_program(config, objective, units, devices)


def lower_step(config: Config, program: TrainProgram, objective: Objective) -> jax.stages.Lowered:
    """The training step of a program, not yet compiled."""
    layout = sharding.batch_sharding(program.mesh)
    shapes = objective.batch_shapes(sequence_length(config), config.train.batch_size)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), shapes
    )
    with sharding.on(program.mesh):
        seed, guard = np.uint32(config.seed), program.guard.initial()
        return program.train_step.lower(program.abstract, batch, seed, guard)


def sequence_length(config: Config) -> int:
    """Tokens in the longest input of a step."""
    learns_from_text = objectives.kind(config.objective).learns_from_text
    return config.data.sequence_length if learns_from_text else config.task.max_length


def fit(config: Config, topology: str, slices: int = 1) -> list[Report]:
    """For each rematerialisation, the largest power of two of sequences a device that fits.

    Where not even one fits, the report of one.
    """
    return [_largest(config, remat, topology, slices) for remat in REMAT]


def _largest(config: Config, remat: str, topology: str, slices: int) -> Report:
    compute = dataclasses.replace(config.compute, remat=remat)

    def at(sequences: int, ways: int) -> Report:
        train = dataclasses.replace(config.train, batch_size=sequences * ways, microbatches=1)
        return compile_step(
            dataclasses.replace(config, compute=compute, train=train), topology, slices
        )  # fmt: skip

    devices = len(tpu_devices(topology)) * slices
    first = at(max(1, config.train.batch_size // devices), devices)
    ways = first.job.batch_ways
    sequences = 2 ** int(math.log2(first.job.batch_size // ways))
    report = first if first.job.batch_size == sequences * ways else at(sequences, ways)
    if report.fits:
        while (larger := at(sequences * 2, ways)).fits:
            sequences, report = sequences * 2, larger
        return report
    while not report.fits and sequences > 1:
        # Activations grow with the batch: skip what is hopeless.
        state = report.job.parameter_bytes + report.job.optimizer_bytes
        room = max(1, report.chip.hbm_bytes - state) / max(1, report.hbm_bytes - state)
        sequences = max(1, min(sequences // 2, 2 ** int(math.log2(max(1, sequences * room)))))
        report = at(sequences, ways)
    return report


def meshes(config: Config, text: str) -> list[Config]:
    """The config with each mesh of "data=4,fsdp=4;fsdp=16"; axes that are not named are 1."""
    names = [field.name for field in dataclasses.fields(MeshConfig)]
    found = []
    for one in text.split(";"):
        sizes = dict.fromkeys(names, 1) | {"dcn_data": -1}
        for part in one.split(","):
            name, _, size = part.strip().partition("=")
            if name not in names or not size.lstrip("-").isdigit():
                raise UserError(
                    f"--compare={text}: {part.strip()!r} is not AXIS=SIZE; axes are "
                    f"{', '.join(names)}, as in 'data=4,fsdp=4;fsdp=16'"
                )
            sizes[name] = int(size)
        found.append(dataclasses.replace(config, mesh=MeshConfig(**sizes)))
    return found


def side_by_side(reports: list[Report]) -> str:
    """A row for each report."""
    head = (
        "mesh", "remat", "sequences a device", "HBM, GiB", "fits", "step, ms", "waiting, ms",
        "tokens/s a chip", "MFU", "longest collective",
    )  # fmt: skip
    rows: list[Sequence[str]] = [head]
    for one in reports:
        found = one.to_dict()
        mesh = " x ".join(f"{axis} {size}" for axis, size in one.job.mesh.items() if size > 1)
        row = [mesh or "1", one.job.remat, f"{found['sequences_per_device']:g}"]
        row += [f"{one.hbm_bytes / 2**30:.2f}", "yes" if one.fits else "no"]
        if one.estimate:
            longest = next(iter(found["collectives"]), None)
            row += ["-"] * 4 if one.estimate.quick else [
                f"{one.step_seconds * 1e3:.1f}", f"{one.exposed_seconds * 1e3:.1f}",
                f"{one.tokens_per_second_per_chip:,.0f}", f"{one.mfu:.1%}",
            ]  # fmt: skip
            row.append(f"{longest['kind']}, {longest['link']}" if longest else "none")
        rows.append(row)
    widths = [max(map(len, filter(None, column))) for column in itertools.zip_longest(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    )


def _job(
    config: Config, program: TrainProgram, objective: Objective, topology: str, slices: int
) -> Job:
    length = sequence_length(config)
    leaves = jax.tree.leaves(program.abstract)
    whole = [_bytes(leaf) for leaf in leaves if leaf.sharding.is_fully_replicated]
    return Job(
        topology=topology,
        slices=slices,
        mesh=dict(program.mesh.shape),
        batch_size=config.train.batch_size,
        sequence_length=length,
        microbatches=config.train.microbatches,
        remat=config.compute.remat,
        steps=program.units.total_steps,
        flops_per_token=objective.flops_per_token(length),
        parameter_bytes=sum(map(_bytes, jax.tree.leaves(program.abstract.params))),
        optimizer_bytes=sum(map(_bytes, jax.tree.leaves(program.abstract.opt_state))),
        replicated_bytes=max(whole, default=0),
    )


def _bytes(leaf) -> int:
    """Of one device's part of an array."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
