"""What a compiled TPU program costs, without a TPU: the compiler's own figures, added up.

    python -m deberta_jax.estimates.cost FILE.py:FUNCTION [CHIP]

prints the estimate of one program; FUNCTION() returns (function, arguments), of which the
arguments may be `jax.ShapeDtypeStruct`s. It runs anywhere libtpu is installed.

An instruction of XLA's carries `estimated_cycles`, which allows for its time at the memory. A
Pallas kernel carries nothing: its cycles are those of its schedule (`estimates.kernel_schedule`),
or the time that reading its operands and writing its results once takes, where that is longer or
there is no schedule. Where the compiler states nothing else (gathers, scatters, sorts, random
bits), the schedule counts too, and the instruction is listed; without one it is listed as unknown.
Transfers that run beside other work and communication between chips are listed with their bytes and
take no cycles.
"""

import dataclasses
import hashlib
import os
import runpy
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deberta_jax.errors import UserError
from deberta_jax.estimates import collectives
from deberta_jax.estimates.hlo import Computation, Instruction, Program, shape_bytes
from deberta_jax.estimates.kernel_schedule import DUMP_FLAGS, Schedule, Schedules
from deberta_jax.parallel.chips import Chip, check_topology, chip_named

KINDS = ("kernel", "matmul", "collective", "transfer", "other")
# They do nothing when the program runs.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_FREE |= {"partition-id", "replica-id", "ConcatBitcast", "AllocateBuffer", "opt-barrier"}
_KERNEL = "tpu_custom_call"
_SCATTERED = ("gather", "scatter", "sort")


@dataclasses.dataclass(frozen=True)
class Op:
    """One instruction of the program.

    Attributes:
        name: the instruction.
        opcode: as HLO names it.
        op_name: where in the Python program it is from.
        kind: one of `KINDS`.
        times: how often it runs.
        cycles: of one run; None where nothing is known.
        basis: "compiler", "schedule", "memory" (a kernel whose transfers take longer than its
            schedule) or "unknown".
        hbm_bytes: operands and results of one run that are in HBM, each counted once.
        contains: which of gather, scatter and sort are in it.
        lower_bound: whether a loop of its schedule has unknown trips, counted as one.
    """

    name: str
    opcode: str
    op_name: str
    kind: str
    times: int
    cycles: float | None
    basis: str
    hbm_bytes: int
    contains: tuple[str, ...] = ()
    lower_bound: bool = False

    @property
    def total(self) -> float:
        return self.times * (self.cycles or 0)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The cost of a program on one device.

    Attributes:
        chip: what it was compiled for.
        ops: every instruction that runs.
        unknown_loops: loops counted as one trip because the program does not state their trips.
        flops: the compiler's count, in which a loop's body counts once.
        argument_bytes, temp_bytes, output_bytes: HBM of one device (aliased outputs included).
        peak_bytes: HBM of one device, all of it: the program itself too, aliased outputs once.
        program: its text.
        quick: whether it was compiled without schedules, so that kernels count as their transfers.
    """

    chip: Chip
    ops: tuple[Op, ...]
    unknown_loops: tuple[str, ...]
    flops: float
    argument_bytes: int
    temp_bytes: int
    output_bytes: int
    peak_bytes: int
    program: Program
    quick: bool = False

    @property
    def cycles(self) -> float:
        return sum(op.total for op in self.ops)

    @property
    def seconds(self) -> float:
        return self.cycles / self.chip.clock

    @property
    def cycles_by_kind(self) -> dict[str, float]:
        return {kind: sum(op.total for op in self.ops if op.kind == kind) for kind in KINDS}

    @property
    def hbm_bytes(self) -> int:
        """Bytes that all runs of all instructions move, at most."""
        return sum(op.times * op.hbm_bytes for op in self.ops)

    @property
    def counts(self) -> dict[str, int]:
        """How many instructions hold a gather, a scatter, a sort."""
        return {name: sum(name in op.contains for op in self.ops) for name in _SCATTERED}

    @property
    def not_estimated(self) -> dict[str, dict[str, float]]:
        """By opcode, what the compiler states no cycles for: instructions, runs, bytes, cycles."""
        table: defaultdict[str, dict[str, float]] = defaultdict(
            lambda: {"instructions": 0, "runs": 0, "hbm_bytes": 0, "cycles": 0.0}
        )
        for op in self.ops:
            if op.kind != "kernel" and op.basis != "compiler":
                row = table["/".join(op.contains) or op.opcode]
                row["instructions"] += 1
                row["runs"] += op.times
                row["hbm_bytes"] += op.times * op.hbm_bytes
                row["cycles"] += op.total
        return dict(table)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single instructions, ready for JSON."""
        summary = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("chip", "ops", "program")
        }
        names = ("cycles", "seconds", "cycles_by_kind", "hbm_bytes", "counts", "not_estimated")
        summary |= {name: getattr(self, name) for name in names}
        return {"chip": self.chip.name, **summary, "unknown_loops": list(self.unknown_loops)}

    def describe(self, top: int = 12) -> str:
        """The parts, the costliest instructions, and what is not estimated."""
        milliseconds = 1e3 / self.chip.clock
        lines = [f"{self.cycles:,.0f} cycles = {self.seconds * 1e3:.3f} ms on {self.chip.name}"]
        for kind, cycles in self.cycles_by_kind.items():
            lines.append(f"  {kind:<12}{cycles:>14,.0f}  {cycles * milliseconds:>9.3f} ms")
        lines.append("costliest (cycles in all, runs, from, name, where it is from):")
        for op in sorted(self.ops, key=lambda op: -op.total)[:top]:
            bound = " at least" if op.lower_bound else ""
            lines.append(
                f"  {op.total:>14,.0f} {op.times:>5} {op.basis}{bound} {op.name} {op.op_name[-70:]}"
            )
        lines.append("no estimate from the compiler (instructions, runs, HBM bytes, our cycles):")
        for name, row in self.not_estimated.items():
            lines.append(
                f"  {name}: {row['instructions']}, {row['runs']}, {row['hbm_bytes']:,}, "
                f"{row['cycles']:,.0f}"
            )
        lines += [f"  trips unknown, counted once: {loop}" for loop in self.unknown_loops]
        return "\n".join(lines)


_prepared = False
_dump: tempfile.TemporaryDirectory | None = None  # gone when the process ends


def prepare(schedules: bool = True) -> None:
    """Sets libtpu up to compile for chips that are not there. Before this process loads libtpu.

    Args:
        schedules: whether to have it write out its schedules, which takes two fifths of the time
            and hundreds of MB of disk. Without them a Pallas kernel counts as its transfers alone.
    """
    global _prepared, _dump
    if not _prepared:
        _prepared = True
        if schedules:
            _dump = tempfile.TemporaryDirectory(prefix="tpu_schedules_")
            flags = os.environ.get("LIBTPU_INIT_ARGS", "")
            flags = f"{flags} {DUMP_FLAGS.format(folder=_dump.name)}".strip()
            os.environ["LIBTPU_INIT_ARGS"] = flags
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        # What libtpu would otherwise ask the metadata server of a TPU machine for.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        jax.config.update("jax_platforms", "cpu")
        # What was compiled for a chip that is not there cannot be read back.
        jax.config.update("jax_enable_compilation_cache", False)


def tpu_devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """Devices to compile for, of a chip ("v5e") or of slices of a topology ("v5e:16x16").

    Raises:
        UserError: there is no such topology, or libtpu is not installed.
    """
    prepare()
    name = topology if ":" in topology else chip_named(topology).host
    options = dict(check_topology(name).compiler_options)
    if name.endswith(":1x1"):  # a host is 2x2 chips to the compiler by default
        options["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        options["num_slices"] = slices
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except (ImportError, RuntimeError, ValueError) as error:
        missing = "" if find_spec("libtpu") else "; libtpu is missing: pip install 'jax[tpu]'"
        raise UserError(f"cannot compile for {name}: {error}{missing}") from error


def estimate_function(
    function: Callable[..., Any], arguments: Any, chip: str = "v5e", **jit_options: Any
) -> Estimate:
    """Compiles `function(*arguments)` for one device and estimates it.

    Args:
        function: what `jax.jit` takes.
        arguments: arrays or `jax.ShapeDtypeStruct`s; their shardings are not read.
        chip: name of a generation in `CHIPS`.
        jit_options: further arguments of `jax.jit`.
    """
    return estimate_lowered(lower_function(function, arguments, chip, **jit_options), chip)


def lower_function(
    function: Callable[..., Any], arguments: Any, chip: str = "v5e", **jit_options: Any
) -> jax.stages.Lowered:
    """`function(*arguments)` for one device, not yet compiled; arguments as `estimate_function`."""
    mesh = Mesh(tpu_devices(chip)[:1], ("device",))  # by which kernels know the chip
    layout = NamedSharding(mesh, PartitionSpec())
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), arguments
    )
    with jax.set_mesh(mesh):
        return jax.jit(function, **jit_options).lower(*arguments)


def estimate_lowered(lowered: jax.stages.Lowered, chip: str) -> Estimate:
    """Compiles what was lowered for `tpu_devices` and estimates it, for one of them."""
    if _dump is None:
        return estimate_program(lowered.compile(), None, chip_named(chip))
    folder = Path(_dump.name)
    for leftover in folder.iterdir():
        leftover.unlink()
    compiled = lowered.compile()
    return estimate_program(compiled, Schedules(folder), chip_named(chip))


def estimate_program(
    compiled: jax.stages.Compiled, schedules: Mapping[str, Schedule] | None, chip: Chip
) -> Estimate:
    """Adds up a compiled program; without schedules, as `prepare` says."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if text is None or memory is None:
        raise ValueError("the compiled program has no text or no memory analysis: not a TPU's")
    program = Program(text)
    kernels = [i.name for i, _, _ in program.runs if i.opcode == _KERNEL]
    if kernels and schedules is not None and not schedules:
        raise UserError(
            f"no schedule of {kernels[0]}: libtpu was loaded before estimates.cost.prepare()"
        )
    costs = _Costs(program, schedules or {}, chip)
    ops = tuple(
        costs.op(instruction, parent, times)
        for instruction, parent, times in program.runs
        if instruction.opcode not in _FREE
    )
    return Estimate(
        chip=chip,
        ops=ops,
        unknown_loops=tuple(program.unknown_loops),
        flops=(compiled.cost_analysis() or {}).get("flops", 0.0),
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        peak_bytes=memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes,
        program=program,
        quick=schedules is None,
    )


class _Costs:
    """What the instructions of a program take."""

    def __init__(self, program: Program, schedules: Mapping[str, Schedule], chip: Chip):
        self._program, self._schedules, self._chip = program, schedules, chip
        # By what was compiled: equal instructions share the schedule of the first.
        self._written = {
            _signature(instruction, parent): instruction.name
            for instruction, parent, _ in program.runs
            if instruction.name in schedules
        }

    def op(self, instruction: Instruction, parent: Computation, times: int) -> Op:
        opcodes = self._program.opcodes_inside(instruction)
        shapes = [instruction.shape, *(parent[name].shape for name in instruction.operands)]
        hbm_bytes = sum(shape_bytes(shape, hbm_only=True) for shape in shapes)
        kind = _kind(instruction.opcode, opcodes)
        cycles: float | None = instruction.estimated_cycles
        basis, lower_bound = "compiler", False
        if kind in ("transfer", "collective"):
            cycles, basis = None, "unknown"
        elif cycles is None:
            cycles, basis, lower_bound = self._scheduled(instruction, parent)
        at_memory = hbm_bytes / self._chip.hbm_bandwidth * self._chip.clock
        if kind == "kernel" and basis != "compiler" and at_memory > (cycles or 0):
            cycles, basis = at_memory, "memory"
        contains = tuple(name for name in _SCATTERED if name in opcodes)
        names = instruction.name, instruction.opcode, instruction.op_name
        return Op(*names, kind, times, cycles, basis, hbm_bytes, contains, lower_bound)

    def _scheduled(
        self, instruction: Instruction, parent: Computation
    ) -> tuple[float | None, str, bool]:
        """Cycles by its schedule, "schedule", and whether a loop's trips are unknown."""
        name = self._written.get(_signature(instruction, parent))
        if name is None:
            return None, "unknown", instruction.opcode == _KERNEL
        schedule = self._schedules[name]
        return schedule.cycles, "schedule", None in schedule.loops


def _kind(opcode: str, opcodes: set[str]) -> str:
    """One of `KINDS`; `opcodes` are those of the instruction and of everything fused into it."""
    if opcode == _KERNEL:
        return "kernel"
    if {name.removesuffix("-start") for name in opcodes} & set(collectives.KINDS):
        return "matmul" if opcodes & {"convolution", "dot"} else "collective"
    if opcode.endswith("-start"):
        return "transfer"
    return "matmul" if opcodes & {"convolution", "dot"} else "other"


def _signature(instruction: Instruction, parent: Computation) -> str:
    """Opcode, types and, of a kernel, its code: a hash, as the code is long."""
    kernel = instruction.opcode == _KERNEL
    own = instruction.attributes if kernel else instruction.name
    shapes = [parent[name].shape for name in instruction.operands]
    code = own.partition("backend_config=")[2] or own
    return hashlib.sha256(
        repr((instruction.opcode, instruction.shape, shapes, code)).encode()
    ).hexdigest()


def _main(target: str, chip: str = "v5e") -> None:
    path, _, name = target.partition(":")
    function, arguments = runpy.run_path(path)[name]()
    print(estimate_function(function, arguments, chip).describe())


if __name__ == "__main__":
    _main(*sys.argv[1:])
