"""What a run leaves to read: metrics.jsonl and TensorBoard events."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from deberta_jax import storage, streams
from deberta_jax.errors import listed
from deberta_jax.training.events import summary_writer

# Line numbers that a message lists.
_NAMED = 5


class MetricWriter:
    """Appends to `metrics.jsonl` and to TensorBoard events; one process of a run has one.

    A resumed run first cuts what an interrupted session wrote after its last checkpoint, so that
    every step stands in the file once. What it keeps, it does not write again.
    """

    def __init__(self, workdir: Path, first_step: int):
        path = workdir / "metrics.jsonl"
        with storage.one_line(path):
            self._file = _cut(path, first_step)
        self._mirror = streams.Mirror(workdir / "tensorboard")
        self._events = summary_writer(self._mirror.directory, purge_step=first_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step} | metrics) + "\n")
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        if self._mirror.due:
            self._events.flush()
            self._mirror.follow()

    def close(self) -> None:
        self._file.close()
        self._events.close()
        self._mirror.close()


def read_metrics(workdir: Path) -> list[dict]:
    """The lines of `metrics.jsonl`, oldest first.

    Damaged lines are left out, which standard error says. A last line that was cut short is not
    mentioned: a killed process was writing it.
    """
    path = workdir / "metrics.jsonl"
    lines = _lines(path)
    damaged = [
        str(number)
        for number, line in enumerate(lines, 1)
        if line.values is None and line.raw.endswith(b"\n")
    ]
    if damaged:
        where = listed(damaged, most=_NAMED)
        print(f"warning: {path}: left out, damaged: line {where}", file=sys.stderr)
    return [line.values for line in lines if line.values is not None]


def held_out_at(workdir: Path, step: int) -> dict[str, float] | None:
    """The metrics ("eval/...") of the evaluation after `step`; None where there was none."""
    return _last_evaluation(line for line in read_metrics(workdir) if line["step"] == step) or None


def last_held_out(workdir: Path) -> dict[str, float]:
    """The metrics ("eval/...") of the last evaluation; none where there was none."""
    return _last_evaluation(read_metrics(workdir))


def _last_evaluation(lines: Iterable[dict]) -> dict[str, float]:
    last: dict = next(reversed([line for line in lines if "eval/loss" in line]), {})
    return {name: value for name, value in last.items() if name.startswith("eval/")}


class _Line(NamedTuple):
    """A line of the file, and what it holds: None where it is damaged."""

    raw: bytes
    values: dict | None


def _lines(path: Path) -> list[_Line]:
    return [_Line(line, _parsed(line)) for line in _split(streams.read(path))]


def _split(raw: bytes) -> Iterator[bytes]:
    """The lines, each with its end; `splitlines` would also split at other characters."""
    *whole, rest = raw.split(b"\n")
    yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def _parsed(raw: bytes) -> dict | None:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, a number too long, nested too deep
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    are_numbers = all(type(value) in (int, float) for value in values.values())
    return values if are_numbers else None


def _cut(path: Path, last_step: int) -> streams.Stream:
    """Cuts the lines of steps after `last_step` off, and a line that was cut short.

    Lines before the cut stay byte by byte, damaged ones too. Returns the file to continue.
    """
    lines = _lines(path)
    kept = [
        number
        for number, line in enumerate(lines)
        if line.values is not None and line.values["step"] <= last_step
    ]
    before = lines[: kept[-1] + 1] if kept else []
    stays = [line.raw for line in before if not line.values or line.values["step"] <= last_step]
    if len(stays) < len(before):  # out of order, as no run writes them
        file = streams.restart(path, b"".join(stays))
    else:
        file = streams.cut(path, sum(len(line.raw) for line in before))
    if before and not before[-1].raw.endswith(b"\n"):
        file.write("\n")
    return file
