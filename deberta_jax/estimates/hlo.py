"""The text of a compiled program: its instructions, and how often each of them runs."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_BYTES = {"pred": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
# S(1) in a layout: the array lives in the chip's vector memory, not in its HBM.
_ON_CHIP = "S(1)"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: unique in the program.
        opcode: as HLO names it; of a custom call, its target.
        shape: the result's type, as text.
        operands: names of the instructions that it reads.
        attributes: the text after the operands.
        root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def op_name(self) -> str:
        """Where in the Python program it is from."""
        return _first(r'op_name="([^"]*)"', self.attributes) or ""

    @property
    def estimated_cycles(self) -> int | None:
        """The compiler's own estimate, with the time that memory takes; None without one."""
        cycles = _first(r'"estimated_cycles":"?(\d+)', self.attributes)
        # The largest integer is the compiler's word for none.
        return None if cycles is None or int(cycles) >= 2**62 else int(cycles)

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations in these attributes."""
        pattern = rf"\b(?:{'|'.join(attributes)})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))"
        return [
            name.strip().lstrip("%")
            for several, one in re.findall(pattern, self.attributes)
            for name in (several or one).split(",")
        ]


# The instructions of a computation by name, in the order of the schedule.
Computation = dict[str, Instruction]


class Program:
    """A compiled program (`compiled.as_text()`).

    Attributes:
        computations: instructions by name, by computation.
        entry: name of the computation that runs.
        unknown_loops: loops whose number of trips is not in the text, once `runs` was read; they
            count as one trip.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        self.unknown_loops: list[str] = []
        current: Computation | None = None
        for line in _whole_lines(text):
            if match := _HEADER.match(line):
                current = self.computations.setdefault(match["name"], {})
                self.entry = match["name"] if match["entry"] else self.entry
            elif current is not None and (match := _INSTRUCTION.match(line)):
                current[match["name"]] = _instruction(match)

    @functools.cached_property
    def runs(self) -> list[tuple[Instruction, Computation, int]]:
        """(instruction, its parent computation, times it runs) of all that the schedule starts.

        A fusion is one instruction. Of a conditional all branches are listed: the sum is an upper
        bound. Waits for what was started earlier ("-done") are not listed.
        """
        return list(self._runs(self.entry, 1))

    def _runs(self, computation: str, times: int) -> Iterator[tuple[Instruction, Computation, int]]:
        parent = self.computations[computation]
        for instruction in parent.values():
            opcode = instruction.opcode
            if opcode == "while":
                trips = self._trips(instruction, parent)
                for name in instruction.called("body", "condition"):
                    yield from self._runs(name, times * trips)
            elif opcode in ("conditional", "call", "async-start"):
                attributes = ("branch_computations", "true_computation", "false_computation")
                for name in instruction.called("to_apply", "calls", *attributes):
                    yield from self._runs(name, times)
            elif not opcode.endswith(("-done", "-update")):
                yield instruction, parent, times

    def opcodes_inside(self, instruction: Instruction) -> set[str]:
        """Opcodes of an instruction and of everything fused into it."""
        opcodes = {instruction.opcode}
        if instruction.opcode == "fusion":
            for name in instruction.called("calls"):
                for fused in self.computations[name].values():
                    opcodes |= self.opcodes_inside(fused)
        return opcodes

    def _trips(self, loop: Instruction, parent: Computation) -> int:
        """Trips of a loop that counts up to a constant, as every scan does."""
        known = _first(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes)
        trips = int(known) if known else self._counted_trips(loop, parent)
        if trips is None:
            self.unknown_loops.append(loop.op_name or loop.name)
        return 1 if trips is None else trips

    def _counted_trips(self, loop: Instruction, parent: Computation) -> int | None:
        """Trips of a loop whose test is `counter < limit`; None of any other."""
        (condition,), (body,) = loop.called("condition"), loop.called("body")
        test = self._root(condition)
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None

        def initial(operand: Instruction | None) -> int | None:
            """What an operand of the test is before the first trip."""
            index = _tuple_index(operand)
            return _constant(
                operand if index is None else _element(parent, loop.operands[0], index)
            )

        counter, limit = (self.computations[condition].get(name) for name in test.operands)
        index = _tuple_index(counter)
        if index is None:
            return None
        start, stop, step = initial(counter), initial(limit), self._step(body, index)
        if start is None or stop is None or step is None:
            return None
        return math.ceil((stop - start) / step)

    def _step(self, body: str, index: int) -> int | None:
        """What a loop's body adds to element `index` of what it carries."""
        computation, root = self.computations[body], self._root(body)
        update = _element(computation, root.name, index)
        if update is None or update.opcode != "add":
            return None
        return next(filter(None, (_constant(computation.get(n)) for n in update.operands)), None)

    def _root(self, computation: str) -> Instruction:
        return next(i for i in self.computations[computation].values() if i.root)


def shape_bytes(shape: str, hbm_only: bool = False) -> int:
    """Bytes of all arrays of a type; `hbm_only`: not of those that live on the chip."""
    total = 0
    for kind, dimensions, layout in _ARRAY.findall(shape):
        if hbm_only and _ON_CHIP in layout:
            continue
        size = math.prod(int(d) for d in dimensions.split(",") if d)
        total += size * (_BYTES.get(kind) or max(1, int(_first(r"(\d+)", kind) or 8) // 8))
    return total


def _whole_lines(text: str) -> Iterator[str]:
    """Lines of the text; an instruction whose attributes hold line breaks is one line."""
    whole = ""
    for line in text.splitlines():
        if not line or line == "}" or line.startswith(("  ", "%", "ENTRY ")):
            yield whole
            whole = line
        else:
            whole += line
    yield whole


def _instruction(match: re.Match[str]) -> Instruction:
    rest = match["rest"]
    shape_end = _balanced(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:shape_end], rest[shape_end:].lstrip()
    opening = rest.index("(")
    closing = _balanced(rest, opening)
    opcode, operands, attributes = rest[:opening], rest[opening:closing], rest[closing:]
    names = [operands[1:-1]] if opcode == "constant" else re.findall(r"%([\w.\-]+)", operands)
    if opcode == "custom-call":
        opcode = _first(r'custom_call_target="([^"]*)"', attributes) or opcode
    return Instruction(match["name"], opcode, shape, tuple(names), attributes, bool(match["root"]))


def _balanced(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    return len(text)


def _element(computation: Computation, name: str, index: int) -> Instruction | None:
    """The instruction behind element `index` of a tuple, through copies."""
    element = computation.get(name)
    if element is not None and element.opcode == "tuple" and index < len(element.operands):
        element = computation.get(element.operands[index])
    while element is not None and element.opcode in ("copy", "bitcast"):
        element = computation.get(element.operands[0])
    return element


def _tuple_index(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    index = _first(r"index=(\d+)", instruction.attributes)
    return None if index is None else int(index)


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    value = instruction.operands[0]
    return int(value) if re.fullmatch(r"-?\d+", value) else None


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1] if match else None
