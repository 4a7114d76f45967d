"""What a training step on a pod needs and takes, from its compiled program: nothing ran."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax

from deberta_jax.estimates.collectives import Collective, Network, read_collectives, table
from deberta_jax.estimates.cost import Estimate
from deberta_jax.parallel.chips import GIB, Chip

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
# What the compiler says of a program that is too large: (needed, available).
_TOO_LARGE = (
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
)
DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Job:
    """What is compiled.

    Attributes:
        topology: of a slice, as "v5e:16x16".
        slices: how many.
        mesh: size of each axis.
        batch_size, sequence_length: of a step, over all devices.
        microbatches, remat: as configured.
        steps: of the whole run.
        flops_per_token: model FLOPs, counted from the mathematics.
        parameter_bytes, optimizer_bytes: of one device's shards.
        replicated_bytes: of the largest array of the state that every device holds whole.
    """

    topology: str
    slices: int
    mesh: dict[str, int]
    batch_size: int
    sequence_length: int
    microbatches: int
    remat: str
    steps: int
    flops_per_token: float
    parameter_bytes: int
    optimizer_bytes: int
    replicated_bytes: int

    @property
    def batch_ways(self) -> int:
        return self.mesh["data"] * self.mesh["fsdp"]


@dataclasses.dataclass(frozen=True)
class Report:
    """A job on its devices; of one that does not fit, only what it needs and has is known.

    Attributes:
        job: what was compiled.
        chip: for what.
        chips: how many; a chip of tpu7x is two devices.
        devices: how many.
        hbm_bytes: what the step needs at its peak on one device.
        estimate: the compiled program's cost without its collectives, or None.
        collectives: what the devices send one another.
    """

    job: Job
    chip: Chip
    chips: int
    devices: int
    hbm_bytes: int
    estimate: Estimate | None = None
    collectives: tuple[Collective, ...] = ()

    @property
    def fits(self) -> bool:
        return self.estimate is not None and self.hbm_bytes <= self.chip.hbm_bytes

    @property
    def _compiled(self) -> Estimate:
        if self.estimate is None:
            raise ValueError("the program is too large for the compiler: it has no estimate")
        return self.estimate

    @property
    def attention_gathers(self) -> int:
        """Instructions of attention that gather, scatter or sort; of a program that compiled."""
        ops = self._compiled.ops
        return sum(bool(op.contains) and "attention" in op.op_name for op in ops)

    @property
    def exposed_seconds(self) -> float:
        return sum(one.times * one.exposed for one in self.collectives)

    @property
    def step_seconds(self) -> float:
        return self._compiled.seconds + self.exposed_seconds

    @property
    def tokens_per_second_per_chip(self) -> float:
        return self.job.batch_size * self.job.sequence_length / self.step_seconds / self.chips

    @property
    def mfu(self) -> float:
        peak = self.chip.peak_flops * self.devices / self.chips
        return self.tokens_per_second_per_chip * self.job.flops_per_token / peak

    @property
    def days(self) -> float:
        return self.job.steps * self.step_seconds / DAY

    @property
    def chip_hours(self) -> float:
        return self.days * 24 * self.chips

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON. Bytes and seconds are of one device."""
        summary = self._job_summary()
        if self.estimate is None:
            return summary
        summary |= {
            "collectives": table(self.collectives),
            "attention_gathers": self.attention_gathers,
            "largest_all_gather": self.largest("all-gather"),
            "quick": self.estimate.quick,
            "unknown_loops": list(self.estimate.unknown_loops),
        }
        if self.estimate.quick:
            return summary
        return summary | {
            "estimated_compute_seconds": self.estimate.seconds,
            "estimated_exposed_seconds": self.exposed_seconds,
            "estimated_step_seconds": self.step_seconds,
            "estimated_tokens_per_second_per_chip": self.tokens_per_second_per_chip,
            "estimated_mfu": self.mfu,
            "estimated_days": self.days,
            "estimated_chip_hours": self.chip_hours,
            "cycles_by_kind": self.estimate.cycles_by_kind,
            "not_estimated": self.estimate.not_estimated,
        }

    def _job_summary(self) -> dict[str, Any]:
        """What is known of a program that does not fit, too."""
        job = self.job
        return {
            "topology": job.topology,
            "slices": job.slices,
            "chips": self.chips,
            "devices": self.devices,
            "mesh": job.mesh,
            "batch_size": job.batch_size,
            "sequences_per_device": job.batch_size / job.batch_ways,
            "microbatches": job.microbatches,
            "remat": job.remat,
            "fits": self.fits,
            "hbm_bytes": self.hbm_bytes,
            "hbm_limit_bytes": self.chip.hbm_bytes,
            "parameter_bytes": job.parameter_bytes,
            "optimizer_bytes": job.optimizer_bytes,
            "activation_bytes": self._activation_bytes,
            "largest_replicated_bytes": job.replicated_bytes,
            "model_flops_per_token": job.flops_per_token,
        }

    @property
    def _activation_bytes(self) -> int:
        """What a step needs beside the state."""
        return max(0, self.hbm_bytes - self.job.parameter_bytes - self.job.optimizer_bytes)

    def largest(self, kind: str) -> dict[str, Any] | None:
        """The collective of this kind that moves the largest array."""
        of_kind = [one for one in self.collectives if one.kind == kind]
        if not of_kind:
            return None
        one = max(of_kind, key=lambda one: one.bytes)
        return {"shape": one.shape, "bytes": one.bytes, "op_name": one.op_name}

    def describe(self) -> str:
        """The report as text, for the terminal."""
        lines = self._job_lines()
        if self.estimate is None:
            return "\n".join(lines)
        lines += self._network_lines()
        lines.append(f"gathers, scatters, sorts in attention: {self.attention_gathers}")
        lines += [f"trips unknown, counted once: {loop}" for loop in self.estimate.unknown_loops]
        if self.estimate.quick:
            return "\n".join([*lines, "how long a step takes is not estimated (--quick)"])
        return "\n".join([*lines, *self._time_lines(self.estimate)])

    def _job_lines(self) -> list[str]:
        job = self.job
        mesh = " x ".join(f"{axis} {size}" for axis, size in job.mesh.items())
        slices = f"{job.slices} slices of " * (job.slices > 1)
        limit, used = self.chip.hbm_bytes, self.hbm_bytes
        verdict = f"fits, {gib(limit - used)} to spare" if self.fits else (
            f"DOES NOT FIT: {gib(used - limit)} too much"
        )  # fmt: skip
        return [
            f"{slices}{job.topology}: {self.chips} chips, {self.devices} devices; mesh: {mesh}",
            f"{job.batch_size:,} sequences of {job.sequence_length} a step, "
            f"{job.batch_size / job.batch_ways:g} a device in {job.microbatches} part(s); remat: "
            f"{job.remat}",
            f"HBM of a device: {gib(used)} of {gib(limit)}: {verdict}",
            f"  parameters {gib(job.parameter_bytes)}, optimizer {gib(job.optimizer_bytes)}, "
            f"activations and the rest {gib(self._activation_bytes)}; the largest array that is "
            f"whole on every device: {gib(job.replicated_bytes)}",
            f"model FLOPs: {job.flops_per_token / 1e6:,.1f}M a token, forward and backward",
        ]

    def _network_lines(self) -> list[str]:
        rows = [
            f"  {row['kind']:<19}{row['link']} among {row['group']:<5}{row['count']:>6} x"
            f"{row['bytes'] / 1e6:>12,.1f} MB{row['seconds'] * 1e3:>10.2f} ms"
            f"{row['exposed_seconds'] * 1e3:>10.2f} ms"
            for row in table(self.collectives)
        ]
        heading = "collectives of a step (runs, bytes, seconds, seconds that nothing hides):"
        return [heading, *(rows or ["  none"])]

    def _time_lines(self, estimate: Estimate) -> list[str]:
        kinds = ", ".join(
            f"{kind} {cycles / 1e6:,.1f}"
            for kind, cycles in estimate.cycles_by_kind.items()
            if cycles
        )
        return [
            f"estimated from the compiler's cycles (million: {kinds}) and the links' rates; "
            "nothing was run:",
            f"  a step {self.step_seconds * 1e3:,.1f} ms: {estimate.seconds * 1e3:,.1f} "
            f"computing, {self.exposed_seconds * 1e3:,.1f} waiting for the network",
            f"  {self.tokens_per_second_per_chip:,.0f} tokens/s a chip, MFU {self.mfu:.1%}",
            f"  {self.job.steps:,} steps: {self.days:,.1f} days, {self.chip_hours:,.0f} chip-hours",
        ]

    def remedies(self) -> list[str]:
        """What would make a job fit that does not, by the share of its memory that it needs."""
        job, limit = self.job, self.chip.hbm_bytes
        state = job.parameter_bytes + job.optimizer_bytes
        activations = self.hbm_bytes - state
        remedies = []
        if job.remat != "full":
            remedies.append('--config.compute.remat="full" (fewer activations kept)')
        parts = job.microbatches
        most = job.batch_size // job.batch_ways
        while (
            parts < most
            and state + job.parameter_bytes + activations * job.microbatches / parts > limit
        ):
            parts *= 2
        if parts > job.microbatches and most % parts == 0:
            remedies.append(f"--config.train.microbatches={parts} (the same batch in more parts)")
        if state > limit / 2 and self.devices > job.mesh["fsdp"]:
            remedies.append("--config.mesh.fsdp=-1 --config.mesh.data=1 (the state split over all)")
        return remedies or ["a topology with more chips, or a chip with more memory"]


def compiled_report(
    job: Job, devices: Sequence[jax.Device], chip: Chip, estimate: Estimate
) -> Report:
    """The report of a program that the compiler took."""
    cycles = {op.name: op.cycles or 0.0 for op in estimate.ops}
    collectives = read_collectives(estimate.program, cycles, Network(devices, chip))
    chips = _chips(devices)
    return Report(job, chip, chips, len(devices), estimate.peak_bytes, estimate, collectives)


def too_large_report(
    job: Job, devices: Sequence[jax.Device], chip: Chip, message: str
) -> Report | None:
    """The report of a program refused for its size; None where it was for another reason."""
    for pattern in _TOO_LARGE:
        if match := pattern.search(message):
            needed = float(match[1]) * _UNITS[match[2]]
            return Report(job, chip, _chips(devices), len(devices), int(needed))
    return None


def _chips(devices: Sequence[jax.Device]) -> int:
    return len({(getattr(d, "slice_index", None), *d.coords) for d in devices})


def gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"
