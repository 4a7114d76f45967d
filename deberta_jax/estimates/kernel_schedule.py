"""Cycles of a compiled kernel, read from the schedule that libtpu writes out.

The compiler states no cost for a Pallas kernel. It does write the kernel's bundles of instructions
(a bundle is a cycle) as they stand after register allocation, empty ones included: those are the
cycles that a unit is still busy, such as the eight that a transposing push into the matrix unit
takes. (The later listing, "final_bundles", leaves them out, because the hardware waits by itself.)
Each bundle counts as often as the loops around it run. Waits for memory are not in it.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_BUNDLES, _LOOPS = "packed-bundles-post-ra", "post-delay-converter"
# What has to stand in LIBTPU_INIT_ARGS when libtpu is loaded.
DUMP_FLAGS = (
    "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
    f"--xla_jf_dump_llo_pass_label_regex=^({_BUNDLES}|{_LOOPS})$"
)

_FILE = re.compile(rf"\d+-(?P<name>.+)-\d+-{_BUNDLES}\.txt")
_BUNDLE = re.compile(
    r"^\s*(?:0x[0-9a-f]+|0)\s+(?P<tag>[A-Z]{2})?\s*:\s*(?P<depth>[> ]*)\{(?P<code>.*)"
)
_LOOP = re.compile(r"^(?P<indent> *)loop: start=(-?\d+), step=(-?\d+), limit=(-?\d+)$")
_BODY = re.compile(r"^(?P<indent> *)\$region(?P<region>\d+): .*// loop_body")
# A pipelined grid runs two more steps than the grid has: the first only fetches, the last only
# writes back.
_PIPELINED, _PIPELINE_STEPS = "iteration index, stage = 1", 2


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What one run of a kernel takes.

    Attributes:
        cycles: bundles, each as often as the loops around it run. Code under a condition counts
            as if the condition held.
        bundles: length of the program.
        loops: trips of each loop, in program order; None where the program decides them at run
            time: such a loop is counted as one trip.
    """

    cycles: int
    bundles: int
    loops: tuple[int | None, ...]


class Schedules(Mapping[str, Schedule]):
    """The schedule of every instruction that libtpu wrote to a folder, by its name.

    Each is read when it is asked for: a training step writes hundreds of MB, for minutes of
    reading, of which an estimate needs a few files.
    """

    def __init__(self, folder: Path):
        # By instruction: the listing of its bundles, and the stem of all its listings.
        self._paths: dict[str, tuple[Path, str]] = {}
        self._read: dict[str, Schedule] = {}
        for path in sorted(Path(folder).glob(f"*-{_BUNDLES}.txt")):
            if match := _FILE.fullmatch(path.name):
                self._paths[match["name"]] = path, path.name[: match.end("name")]

    def __getitem__(self, name: str) -> Schedule:
        path, stem = self._paths[name]
        if name not in self._read:
            loops = next(path.parent.glob(f"{_literal(stem)}-*-{_LOOPS}.txt"))
            self._read[name] = parse_schedule(path.read_text(), loops.read_text())
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, name: object) -> bool:
        return name in self._paths


def parse_schedule(bundles_text: str, loops_text: str) -> Schedule:
    """Of one kernel: its listing of bundles, and its listing of regions with the loops' bounds."""
    bundles = [match for line in bundles_text.splitlines() if (match := _BUNDLE.match(line))]
    depths = [_depth(bundle) for bundle in bundles]
    trips_of = _trips_by_region(loops_text)
    weights = [1] * len(bundles)
    loops: list[int | None] = []
    for start, bundle in enumerate(bundles):
        if bundle["tag"] != "LB":
            continue
        trips = _trips(bundle["code"], trips_of)
        loops.append(trips)
        for index in range(start, _loop_end(bundles, depths, start) + 1):
            weights[index] *= 1 if trips is None else trips
    return Schedule(sum(weights), len(bundles), tuple(loops))


def _depth(bundle: re.Match[str]) -> int | None:
    """Loops around a bundle; an empty one does not say."""
    return bundle["depth"].count(">") if bundle["code"].strip() != "}" else None


def _loop_end(bundles: Sequence[re.Match[str]], depths: Sequence[int | None], start: int) -> int:
    """The last bundle of the loop that begins at `start`.

    A loop's test is moved to its end and listed one level up, so a bundle of the outer level ends
    nothing; the last bundle of the loop's own level, before another loop of that level, does.
    """
    end = start
    level = depths[start] or 0  # of an empty bundle, which starts no loop of known trips
    for index in range(start + 1, len(bundles)):
        depth = depths[index]
        if depth is None:
            continue
        if bundles[index]["tag"] == "LB" and depth <= level:
            break
        if depth >= level:
            end = index
    return end


def _trips_by_region(loops_text: str) -> dict[str, int]:
    """Trips of the loops whose bounds are constants, by the region that is their body."""
    trips: dict[str, int] = {}
    waiting: dict[str, int] = {}  # by indentation, for the body that follows
    for line in loops_text.splitlines():
        if match := _LOOP.match(line):
            start, step, limit = map(int, match.groups()[1:])
            waiting[match["indent"]] = max(0, math.ceil((limit - start) / step))
        elif (match := _BODY.match(line)) and match["indent"] in waiting:
            trips[match["region"]] = waiting.pop(match["indent"])
    return trips


def _trips(code: str, trips_of: dict[str, int]) -> int | None:
    for region in re.findall(r"Start region (\d+)", code):
        if region in trips_of:
            pipelined = _PIPELINE_STEPS if _PIPELINED in code else 0
            return max(1, trips_of[region] - pipelined)
    return None


def _literal(name: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", name)
