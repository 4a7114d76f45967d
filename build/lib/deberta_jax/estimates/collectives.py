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

import numpy as np

from deberta_jax.estimates.hlo import Instruction, Program, shape_bytes
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
class _Move:
    """A collective as the text has it; `inner` is the instruction itself, maybe in a fusion."""

    kind: str
    link: str
    inner: Instruction
    shape: str
    asynchronous: bool


class Network:
    """The devices of a program, in the order of its mesh, and what joins them."""

    def __init__(self, devices, chip: Chip):
        self.chip = chip
        first = slice_of(devices[0])
        self.slices = len({slice_of(device) for device in devices})
        self.members = [device for device in devices if slice_of(device) == first]
        self.places = np.array([device.coords for device in self.members])
        self.torus = self.places.max(axis=0) + 1

    def seconds(self, kind: str, size: int, group: list[int]) -> float:
        """Of one collective over ICI, among the devices at these places of the mesh."""
        spans = [len(set(axis)) for axis in self.places[group].T]
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
    program: Program, cycles: dict[str, float], network: Network
) -> tuple[Collective, ...]:
    """Every collective of a program.

    Args:
        program: what was compiled.
        cycles: what each instruction that moves nothing takes, by its name.
        network: where it runs.
    """
    found = []
    # What a collective hides behind hides no other one that uses the same links.
    left: dict[tuple[str, str], float] = {}
    for instruction, around, times in program.runs:
        move = _move(program, instruction, around)
        if move is None:
            continue
        size = shape_bytes(move.shape)
        if move.link == "DCN":
            group = network.slices
            seconds = size / network.chip.dcn_bandwidth
        else:
            places = _group(move.inner, len(network.members))
            group, seconds = len(places), network.seconds(move.kind, size, places)
        exposed = seconds
        for name in _meanwhile(program, instruction, around, move) if move.asynchronous else ():
            rest = left.setdefault((move.link, name), cycles.get(name, 0.0) / network.chip.clock)
            hidden = min(exposed, rest)
            left[move.link, name] -= hidden
            exposed -= hidden
        where = move.inner.op_name or instruction.op_name
        found.append(
            Collective(
                instruction.name,
                move.kind,
                move.link,
                where,
                move.shape,
                size,
                group,
                times,
                seconds,
                exposed,
            )
        )
    return tuple(found)


def table(collectives) -> list[dict]:
    """Sums by kind, link and size of the group, the longest first."""
    rows = defaultdict(lambda: {"count": 0, "bytes": 0, "seconds": 0.0, "exposed_seconds": 0.0})
    for one in collectives:
        row = rows[one.kind, one.link, one.group]
        row["count"] += one.times
        row["bytes"] += one.times * one.bytes
        row["seconds"] += one.times * one.seconds
        row["exposed_seconds"] += one.times * one.exposed
    named = [
        dict(zip(("kind", "link", "group"), key, strict=True)) | row for key, row in rows.items()
    ]
    return sorted(named, key=lambda row: -row["seconds"])


def _move(program: Program, instruction: Instruction, around) -> _Move | None:
    opcode = instruction.opcode
    if opcode == "send" and "megascale" in instruction.attributes:
        kind = re.search(r'_transfer_type="(\w+)"', instruction.attributes)
        kind = kind[1].lower().replace("_", "-") if kind else "collective-permute"
        array = re.search(r"\w+\[[\d,]*\]", instruction.shape)[0]
        return _Move(kind, "DCN", instruction, array, True)
    if opcode.removesuffix("-start") in KINDS:
        return _Move(
            opcode.removesuffix("-start"),
            "ICI",
            instruction,
            _whole(instruction, around),
            opcode.endswith("-start"),
        )
    if opcode != "fusion":
        return None
    (called,) = instruction.called("calls")
    inside = program.computations[called]
    inner = next((i for i in inside.values() if i.opcode in KINDS), None)
    opcodes = {i.opcode for i in inside.values()}
    if inner is None or _DONE in opcodes or (_MIDDLE in called and _START not in opcodes):
        return None
    kind = inner.opcode
    if kind == "all-reduce" and shape_bytes(instruction.shape) < shape_bytes(inner.shape):
        kind = "reduce-scatter"  # each device keeps its part
    return _Move(kind, "ICI", inner, _whole(inner, inside), _START in opcodes)


def _whole(instruction: Instruction, around) -> str:
    """The type of the whole array that a collective moves."""
    if instruction.opcode.startswith("reduce-scatter"):
        return ", ".join(around[name].shape for name in instruction.operands)
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        # (operands, results, ...)
        arrays = re.findall(r"\w+\[[\d,]*\]", instruction.shape)
        count = len(instruction.operands)
        return ", ".join(arrays[count : 2 * count])
    return instruction.shape


def _group(instruction: Instruction, members: int) -> list[int]:
    """Places, in the mesh of one slice, of the first group that takes part."""
    text = instruction.attributes
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
        return [int(match[1]), int(match[2])]
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        group = [int(place) for place in match[1].split(",")]
    elif match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, dims, order = (
            [int(n) for n in part.split(",")] if part else None for part in match.groups()
        )
        places = np.arange(math.prod(dims)).reshape(dims)
        group = (places.transpose(order) if order else places).reshape(shape)[0].tolist()
    else:
        group = list(range(members))
    return [place for place in group if place < members]


def _meanwhile(program: Program, start: Instruction, around, move: _Move) -> list[str]:
    """Instructions between a collective's start and its end, in the order of the schedule."""
    names = list(around)
    begin = names.index(start.name) + 1
    for end in range(begin, len(names)):
        if _ends(program, around[names[end]], start, move):
            return names[begin:end]
    return names  # it ends in the loop's next trip


def _ends(program: Program, instruction: Instruction, start: Instruction, move: _Move) -> bool:
    if instruction.opcode.endswith("-done"):
        return start.name in instruction.operands
    if instruction.opcode != "fusion" or move.inner is start:
        return False
    (called,) = instruction.called("calls")
    inside = program.computations[called].values()
    return any(i.opcode == _DONE for i in inside) and any(
        _channel(i) == _channel(move.inner) for i in inside if i.opcode == move.inner.opcode
    )


def _channel(instruction: Instruction) -> str | None:
    match = re.search(r"channel_id=(\d+)", instruction.attributes)
    return match and match[1]
