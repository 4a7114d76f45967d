"""What a training step on a pod needs and takes, from its compiled program: nothing ran."""

import dataclasses
import re
from collections import Counter
from typing import Any

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
    def attention_gathers(self) -> int:
        """Instructions of attention that gather, scatter or sort."""
        return sum(bool(op.contains) and "attention" in op.op_name for op in self.estimate.ops)

    @property
    def exposed_seconds(self) -> float:
        return sum(one.times * one.exposed for one in self.collectives)

    @property
    def step_seconds(self) -> float:
        return self.estimate.seconds + self.exposed_seconds

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

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON. Bytes and seconds are of one device."""
        job = self.job
        state = job.parameter_bytes + job.optimizer_bytes
        found = {
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
            "activation_bytes": max(0, self.hbm_bytes - state),
            "largest_replicated_bytes": job.replicated_bytes,
            "model_flops_per_token": job.flops_per_token,
        }
        if self.estimate is None:
            return found
        found |= {
            "collectives": table(self.collectives),
            "attention_gathers": self.attention_gathers,
            "largest_all_gather": self.largest("all-gather"),
            "quick": self.estimate.quick,
            "unknown_loops": list(self.estimate.unknown_loops),
        }
        if self.estimate.quick:
            return found
        return found | {
            "estimated_compute_seconds": self.estimate.seconds,
            "estimated_exposed_seconds": self.exposed_seconds,
            "estimated_step_seconds": self.step_seconds,
            "estimated_tokens_per_second_per_chip": self.tokens_per_second_per_chip,
            "estimated_mfu": self.mfu,
            "estimated_days": self.days,
            "estimated_chip_hours": self.days * 24 * self.chips,
            "cycles_by_kind": self.estimate.cycles_by_kind,
            "not_estimated": self.estimate.not_estimated,
        }

    def largest(self, kind: str) -> dict[str, Any] | None:
        """The collective of this kind that moves the largest array."""
        found = [one for one in self.collectives if one.kind == kind]
        if not found:
            return None
        one = max(found, key=lambda one: one.bytes)
        return {"shape": one.shape, "bytes": one.bytes, "op_name": one.op_name}

    def describe(self) -> str:
        job, found = self.job, self.to_dict()
        mesh = " x ".join(f"{axis} {size}" for axis, size in job.mesh.items())
        slices = f"{job.slices} slices of " * (job.slices > 1)
        limit, used = self.chip.hbm_bytes, self.hbm_bytes
        verdict = f"fits, {gib(limit - used)} to spare" if self.fits else (
            f"DOES NOT FIT: {gib(used - limit)} too much"
        )  # fmt: skip
        lines = [
            f"{slices}{job.topology}: {self.chips} chips, {self.devices} devices; mesh: {mesh}",
            f"{job.batch_size:,} sequences of {job.sequence_length} a step, "
            f"{found['sequences_per_device']:g} a device in {job.microbatches} part(s); remat: "
            f"{job.remat}",
            f"HBM of a device: {gib(used)} of {gib(limit)}: {verdict}",
            f"  parameters {gib(job.parameter_bytes)}, optimizer {gib(job.optimizer_bytes)}, "
            f"activations and the rest {gib(found['activation_bytes'])}; the largest array that is "
            f"whole on every device: {gib(job.replicated_bytes)}",
            f"model FLOPs: {job.flops_per_token / 1e6:,.1f}M a token, forward and backward",
        ]
        if self.estimate is None:
            return "\n".join(lines)
        lines.append("collectives of a step (runs, bytes, seconds, seconds that nothing hides):")
        lines += [
            f"  {row['kind']:<19}{row['link']} among {row['group']:<5}{row['count']:>6} x"
            f"{row['bytes'] / 1e6:>12,.1f} MB{row['seconds'] * 1e3:>10.2f} ms"
            f"{row['exposed_seconds'] * 1e3:>10.2f} ms"
            for row in found["collectives"]
        ] or ["  none"]
        lines.append(f"gathers, scatters, sorts in attention: {self.attention_gathers}")
        lines += [f"trips unknown, counted once: {loop}" for loop in self.estimate.unknown_loops]
        if self.estimate.quick:
            return "\n".join([*lines, "how long a step takes is not estimated (--quick)"])
        kinds = ", ".join(f"{kind} {cycles / 1e6:,.1f}" for kind, cycles in
                          found["cycles_by_kind"].items() if cycles)  # fmt: skip
        lines += [
            f"estimated from the compiler's cycles (million: {kinds}) and the links' rates; "
            "nothing was run:",
            f"  a step {self.step_seconds * 1e3:,.1f} ms: {self.estimate.seconds * 1e3:,.1f} "
            f"computing, {self.exposed_seconds * 1e3:,.1f} waiting for the network",
            f"  {self.tokens_per_second_per_chip:,.0f} tokens/s a chip, MFU {self.mfu:.1%}",
            f"  {job.steps:,} steps: {self.days:,.1f} days, "
            f"{found['estimated_chip_hours']:,.0f} chip-hours",
        ]
        return "\n".join(lines)

    def remedies(self) -> list[str]:
        """What would make a job fit that does not, by the share of its memory that it needs."""
        job, limit = self.job, self.chip.hbm_bytes
        state = job.parameter_bytes + job.optimizer_bytes
        activations = self.hbm_bytes - state
        found = []
        if job.remat != "full":
            found.append('--config.compute.remat="full" (fewer activations kept)')
        parts = job.microbatches
        most = job.batch_size // job.batch_ways
        while (
            parts < most
            and state + job.parameter_bytes + activations * job.microbatches / parts > limit
        ):
            parts *= 2
        if parts > job.microbatches and most % parts == 0:
            found.append(f"--config.train.microbatches={parts} (the same batch in more parts)")
        if state > limit / 2 and self.devices > job.mesh["fsdp"]:
            found.append("--config.mesh.fsdp=-1 --config.mesh.data=1 (the state split over all)")
        return found or ["a topology with more chips, or a chip with more memory"]


def compiled_report(job: Job, devices, chip: Chip, estimate: Estimate) -> Report:
    """The report of a program that the compiler took."""
    cycles = Counter()
    for op in estimate.ops:
        cycles[op.name] = op.cycles or 0.0
    collectives = read_collectives(estimate.program, cycles, Network(devices, chip))
    chips = _chips(devices)
    return Report(job, chip, chips, len(devices), estimate.peak_bytes, estimate, collectives)


def too_large_report(job: Job, devices, chip: Chip, message: str) -> Report | None:
    """The report of a program refused for its size; None where it was for another reason."""
    for pattern in _TOO_LARGE:
        if match := pattern.search(message):
            needed = float(match[1]) * _UNITS[match[2]]
            return Report(job, chip, _chips(devices), len(devices), int(needed))
    return None


def _chips(devices) -> int:
    return len({(getattr(d, "slice_index", None), *d.coords) for d in devices})


def gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"
