"""The text of a compiled program: its instructions, and how often each of them runs."""

import dataclasses
import functools
import math
import re

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


class Program:
    """A compiled program (`compiled.as_text()`).

    Attributes:
        computations: instructions by name, by computation.
        entry: name of the computation that runs.
        unknown_loops: loops whose trips the text does not tell, once `runs` was read; they count
            as one trip.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, self.unknown_loops = "", []
        current = None
        for line in _whole_lines(text):
            if match := _HEADER.match(line):
                current = self.computations.setdefault(match["name"], {})
                self.entry = match["name"] if match["entry"] else self.entry
            elif current is not None and (match := _INSTRUCTION.match(line)):
                current[match["name"]] = _instruction(match)

    @functools.cached_property
    def runs(self) -> list[tuple[Instruction, dict[str, Instruction], int]]:
        """(instruction, its computation, times it runs) of all that the schedule starts.

        A fusion is one instruction. Of a conditional all branches are listed: the sum is an upper
        bound. Waits for what was started earlier ("-done") are not listed.
        """
        return list(self._runs(self.entry, 1))

    def _runs(self, computation: str, times: int):
        instructions = self.computations[computation]
        for instruction in instructions.values():
            opcode = instruction.opcode
            if opcode == "while":
                inside = self._trips(instruction, instructions)
                for name in instruction.called("body", "condition"):
                    yield from self._runs(name, times * inside)
            elif opcode in ("conditional", "call", "async-start"):
                attributes = ("branch_computations", "true_computation", "false_computation")
                for name in instruction.called("to_apply", "calls", *attributes):
                    yield from self._runs(name, times)
            elif not opcode.endswith(("-done", "-update")):
                yield instruction, instructions, times

    def opcodes_inside(self, instruction: Instruction) -> set[str]:
        """Opcodes of an instruction and of everything fused into it."""
        found = {instruction.opcode}
        if instruction.opcode == "fusion":
            for name in instruction.called("calls"):
                for inner in self.computations[name].values():
                    found |= self.opcodes_inside(inner)
        return found

    def _trips(self, loop: Instruction, around: dict[str, Instruction]) -> int:
        """Trips of a loop that counts up to a constant, as every scan does."""
        known = _first(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes)
        trips = int(known) if known else self._counted_trips(loop, around)
        if trips is None:
            self.unknown_loops.append(loop.op_name or loop.name)
        return 1 if trips is None else trips

    def _counted_trips(self, loop, around) -> int | None:
        (condition,), (body,) = loop.called("condition"), loop.called("body")
        test = self._root(condition)
        inside = self.computations[condition]
        if test.opcode != "compare":
            return None

        def at_first(element):
            """What an operand of the test is before the first trip."""
            index = _tuple_index(element)
            return _constant(
                element if index is None else _element(around, loop.operands[0], index)
            )

        counter, limit = (inside.get(name) for name in test.operands)
        index = _tuple_index(counter)
        if "direction=LT" not in test.attributes or index is None:
            return None
        bounds = at_first(counter), at_first(limit), self._step(body, index)
        if None in bounds:
            return None
        start, stop, step = bounds
        return math.ceil((stop - start) / step)

    def _step(self, body: str, index: int) -> int | None:
        """What a loop's body adds to element `index` of what it carries."""
        instructions, root = self.computations[body], self._root(body)
        update = _element(instructions, root.name, index)
        if update is None or update.opcode != "add":
            return None
        return next(filter(None, (_constant(instructions.get(n)) for n in update.operands)), None)

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


def _whole_lines(text: str):
    """Lines of the text; an instruction whose attributes hold line breaks is one line."""
    whole = ""
    for line in text.splitlines():
        if not line or line == "}" or line.startswith(("  ", "%", "ENTRY ")):
            yield whole
            whole = line
        else:
            whole += line
    yield whole


def _instruction(match) -> Instruction:
    rest = match["rest"]
    shape_end = _balanced(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:shape_end], rest[shape_end:].lstrip()
    opening = rest.index("(")
    closing = _balanced(rest, opening)
    opcode, operands, attributes = rest[:opening], rest[opening:closing], rest[closing:]
    if opcode == "constant":
        names = (operands[1:-1],)
    else:
        names = tuple(re.findall(r"%([\w.\-]+)", operands))
    if opcode == "custom-call":
        opcode = _first(r'custom_call_target="([^"]*)"', attributes) or opcode
    return Instruction(match["name"], opcode, shape, names, attributes, bool(match["root"]))


def _balanced(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return len(text)


def _element(instructions, name: str, index: int) -> Instruction | None:
    """The instruction behind element `index` of a tuple, through copies."""
    found = instructions.get(name)
    if found is not None and found.opcode == "tuple" and index < len(found.operands):
        found = instructions.get(found.operands[index])
    while found is not None and found.opcode in ("copy", "bitcast"):
        found = instructions.get(found.operands[0])
    return found


def _tuple_index(instruction) -> int | None:
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    return int(_first(r"index=(\d+)", instruction.attributes))


def _constant(instruction) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    value = instruction.operands[0]
    return int(value) if re.fullmatch(r"-?\d+", value) else None


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match and match[1]
