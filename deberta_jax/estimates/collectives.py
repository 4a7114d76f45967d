"""What the chips of a compiled program send one another: over which links, how long it takes.

Seconds are a lower bound: a collective is taken to use every link of the torus axes that its group
spans, in both directions where an axis is a ring, at the rate that the maker states, without
latency. One that runs beside other work is hidden as long as that work lasts; what is left, and
every other one, is exposed: the chip waits for it.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from deberta_jax.estimates.hlo import Computation, Instruction, Program, shape_bytes
from deberta_jax.parallel.chips import Chip
from deberta_jax.parallel.mesh import slice_of

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_START, _DONE, _MIDDLE = "AsyncCollectiveStart", "AsyncCollectiveDone", "async_collective_fusion"
# Times that a ring's links carry an array of n equal parts, over (n - 1) / n.
_PASSES = {"all-reduce": 2.0, "all-gather": 1.0, "reduce-scatter": 1.0}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction that moves data between chips.

    Attributes:
        name: the instruction.
        kind: one of `KINDS`.
        link: "ICI" or "DCN".
        op_name: where in the Python program it is from.
        shape: of the whole array: what an all-gather ends with, a reduce-scatter begins with.
        bytes: of that array, in one run.
        group: devices that take part in one of its groups; of a DCN transfer, slices.
        times: how often it runs.
        seconds: of one run.
        exposed: seconds of one run that no other work hides.
    """

    name: str
    kind: str
    link: str
    op_name: str
    shape: str
    bytes: int
    group: int
    times: int
    seconds: float
    exposed: float


@dataclasses.dataclass(frozen=True)
class _Transfer:
    """A collective as the text has it; `source` is the instruction itself, maybe in a fusion."""

    kind: str
    link: str
    source: Instruction
    shape: str
    asynchronous: bool


class Network:
    """The devices of a program, in the order of its mesh, and what joins them."""

    def __init__(self, devices: Sequence[jax.Device], chip: Chip):
        self.chip = chip
        first = slice_of(devices[0])
        self.slices = len({slice_of(device) for device in devices})
        self.members = [device for device in devices if slice_of(device) == first]
        self.coords = np.array([device.coords for device in self.members])
        self.torus = self.coords.max(axis=0) + 1

    def seconds(self, kind: str, size: int, group: list[int]) -> float:
        """Of one collective over ICI.

        Args:
            kind: one of `KINDS`.
            size: bytes of the whole array.
            group: the devices that take part, by their positions in the mesh of one slice.
        """
        spans = [len(set(axis)) for axis in self.coords[group].T]
        links = sum(
            self._links(span, length) for span, length in zip(spans, self.torus, strict=True)
        )
        if not links:  # the cores of one chip
            return 0.0
        wire = self.chip.link_bandwidth
        if kind == "collective-permute":
            return size / wire
        if kind == "all-to-all":  # half of everything crosses the middle of the longest axis
            return size / (links * wire) * max(1.0, max(spans) / 4)
        return _PASSES[kind] * size * (1 - 1 / len(group)) / (links * wire)

    def _links(self, span: int, length: int) -> int:
        if span == 1:
            return 0
        return 2 if span == length and length % self.chip.wraps == 0 else 1


def read_collectives(
    program: Program, cycles: Mapping[str, float], network: Network
) -> tuple[Collective, ...]:
    """Every collective of a program.

    Args:
        program: what was compiled.
        cycles: what each instruction that moves nothing takes, by its name.
        network: where it runs.
    """
    collectives = []
    # What a collective hides behind hides no other one that uses the same links: seconds left of
    # each instruction, by (link, name).
    left: dict[tuple[str, str], float] = {}
    for instruction, parent, times in program.runs:
        transfer = _transfer(program, instruction, parent)
        if transfer is None:
            continue
        size = shape_bytes(transfer.shape)
        group, seconds = _duration(transfer, size, network)
        exposed = seconds
        if transfer.asynchronous:
            for name in _meanwhile(program, instruction, parent, transfer):
                key = transfer.link, name
                rest = left.setdefault(key, cycles.get(name, 0.0) / network.chip.clock)
                hidden = min(exposed, rest)
                left[key] -= hidden
                exposed -= hidden
        collectives.append(
            Collective(
                name=instruction.name,
                kind=transfer.kind,
                link=transfer.link,
                op_name=transfer.source.op_name or instruction.op_name,
                shape=transfer.shape,
                bytes=size,
                group=group,
                times=times,
                seconds=seconds,
                exposed=exposed,
            )
        )
    return tuple(collectives)


def _duration(transfer: _Transfer, size: int, network: Network) -> tuple[int, float]:
    """(devices or slices that take part, seconds of one run) of a transfer of `size` bytes."""
    if transfer.link == "DCN":
        return network.slices, size / network.chip.dcn_bandwidth
    group = _group(transfer.source, len(network.members))
    return len(group), network.seconds(transfer.kind, size, group)


def table(collectives: Iterable[Collective]) -> list[dict[str, Any]]:
    """Sums by kind, link and size of the group, the longest first."""
    rows: defaultdict[tuple[str, str, int], dict[str, float]] = defaultdict(
        lambda: {"count": 0, "bytes": 0, "seconds": 0.0, "exposed_seconds": 0.0}
    )
    for one in collectives:
        row = rows[one.kind, one.link, one.group]
        row["count"] += one.times
        row["bytes"] += one.times * one.bytes
        row["seconds"] += one.times * one.seconds
        row["exposed_seconds"] += one.times * one.exposed
    named = [
        {"kind": kind, "link": link, "group": group, **row}
        for (kind, link, group), row in rows.items()
    ]
    return sorted(named, key=lambda row: -row["seconds"])


def _transfer(program: Program, instruction: Instruction, parent: Computation) -> _Transfer | None:
    """What an instruction moves between chips; None where it moves nothing."""
    opcode = instruction.opcode
    if opcode == "send" and "megascale" in instruction.attributes:
        named = re.search(r'_transfer_type="(\w+)"', instruction.attributes)
        kind = named[1].lower().replace("_", "-") if named else "collective-permute"
        array = re.findall(r"\w+\[[\d,]*\]", instruction.shape)[0]
        return _Transfer(kind, "DCN", instruction, array, True)
    if opcode.removesuffix("-start") in KINDS:
        kind, whole = opcode.removesuffix("-start"), _whole(instruction, parent)
        return _Transfer(kind, "ICI", instruction, whole, opcode.endswith("-start"))
    return _fused_transfer(program, instruction) if opcode == "fusion" else None


def _fused_transfer(program: Program, fusion: Instruction) -> _Transfer | None:
    (called,) = fusion.called("calls")
    fused = program.computations[called]
    source = next((i for i in fused.values() if i.opcode in KINDS), None)
    opcodes = {i.opcode for i in fused.values()}
    if source is None or _DONE in opcodes or (_MIDDLE in called and _START not in opcodes):
        return None
    kind = source.opcode
    if kind == "all-reduce" and shape_bytes(fusion.shape) < shape_bytes(source.shape):
        kind = "reduce-scatter"  # each device keeps its part
    return _Transfer(kind, "ICI", source, _whole(source, fused), _START in opcodes)


def _whole(instruction: Instruction, parent: Computation) -> str:
    """The type of the whole array that a collective moves."""
    if instruction.opcode.startswith("reduce-scatter"):
        return ", ".join(parent[name].shape for name in instruction.operands)
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        # (operands, results, ...)
        arrays = re.findall(r"\w+\[[\d,]*\]", instruction.shape)
        count = len(instruction.operands)
        return ", ".join(arrays[count : 2 * count])
    return instruction.shape


def _group(instruction: Instruction, members: int) -> list[int]:
    """Positions, in the mesh of one slice, of the devices of a collective's first group."""
    text = instruction.attributes
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
        return [int(match[1]), int(match[2])]
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        group = _numbers(match[1])
    elif match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, dims, order = map(_numbers, match.groups(default=""))
        positions = np.arange(math.prod(dims)).reshape(dims)
        group = (positions.transpose(order) if order else positions).reshape(shape)[0].tolist()
    else:
        group = list(range(members))
    return [position for position in group if position < members]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _meanwhile(
    program: Program, start: Instruction, parent: Computation, transfer: _Transfer
) -> list[str]:
    """Instructions between a collective's start and its end, in the order of the schedule."""
    names = list(parent)
    begin = names.index(start.name) + 1
    for end in range(begin, len(names)):
        if _ends(program, parent[names[end]], start, transfer):
            return names[begin:end]
    return names  # it ends in the loop's next trip


def _ends(
    program: Program, instruction: Instruction, start: Instruction, transfer: _Transfer
) -> bool:
    """Whether `instruction` waits for what `start` began."""
    if instruction.opcode.endswith("-done"):
        return start.name in instruction.operands
    if instruction.opcode != "fusion" or transfer.source is start:
        return False
    (called,) = instruction.called("calls")
    fused, source = program.computations[called].values(), transfer.source
    return any(i.opcode == _DONE for i in fused) and any(
        _channel(i) == _channel(source) for i in fused if i.opcode == source.opcode
    )


def _channel(instruction: Instruction) -> str | None:
    match = re.search(r"channel_id=(\d+)", instruction.attributes)
    return match[1] if match else None
