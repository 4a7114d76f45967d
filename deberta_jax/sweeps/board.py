"""The live table of a sweep; where there is no terminal, a line whenever something happens."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from deberta_jax.sweeps.variants import Run
from deberta_jax.training.metrics import read_metrics
from deberta_jax.training.recorder import duration_text

WAITING, RUNNING, DONE, FAILED, STOPPED = "waiting", "running", "done", "failed", "stopped"
_STYLES = {WAITING: "dim", RUNNING: "cyan", DONE: "green", FAILED: "bold red", STOPPED: "yellow"}
# Running runs are looked at this often, in seconds.
_LOOK_EVERY = 2.0


class Board:
    """Shows the state of every run."""

    def __init__(self, title: str, console: Console | None = None):
        self._title, self._console = title, console or Console()
        self._rows: dict[str, dict] = {}
        self._live: Live | None = None
        self._looked = 0.0

    def __enter__(self):
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.__enter__()
        return self

    def __exit__(self, *error):
        if self._live:
            self._show(self._live)
            self._live.__exit__(*error)

    def add(self, run: Run, total_steps: int, state: str = WAITING) -> None:
        self._rows[run.name] = {
            "run": run,
            "total": total_steps,
            "state": state,
            "lines": [],
            "start": None,
            "end": None,
        }

    def change(self, name: str, state: str, remark: str = "") -> None:
        """A run starts or ends; the remark is shown with it."""
        row = self._rows[name]
        row["state"] = state
        row["start" if state == RUNNING else "end"] = time.monotonic()
        row["lines"] = read_metrics(row["run"].workdir)
        if self._live:
            if state == FAILED:  # above the table, where it stays
                self._console.print(f"{name} failed: {remark}", markup=False, highlight=False)
            self._show(self._live)
        else:
            counts = f"{self._count(DONE)} of {len(self._rows)} done"
            took = ""
            if state != RUNNING and row["start"]:
                took = f" after {duration_text(row['end'] - row['start'])}"
            loss = _last(row["lines"], "eval/loss")
            held_out = f", held-out loss {loss:.4f}" if state == DONE and loss is not None else ""
            remark = f": {remark}" if remark else ""
            self._console.print(
                f"{name}: {state}{took}{held_out}{remark} ({counts})",
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip

    def look(self) -> None:
        """Reads how far the running runs are, now and then."""
        if not self._live or time.monotonic() - self._looked < _LOOK_EVERY:
            return
        self._looked = time.monotonic()
        for row in self._rows.values():
            if row["state"] == RUNNING:
                row["lines"] = read_metrics(row["run"].workdir)
        self._show(self._live)

    def _show(self, live: Live) -> None:
        live.update(self.table(self._console.height - 6), refresh=True)

    def table(self, height: int) -> Table:
        """At most `height` rows: those that failed or run are shown before those that wait."""
        counts = ", ".join(f"{count} {state}" for state in _STYLES if (count := self._count(state)))
        left = self._time_left()
        table = Table(
            title=f"{self._title}: {counts}" + (f"; about {left} left" if left else ""),
            title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False,
        )  # fmt: skip
        for heading in ("run", "state"):
            table.add_column(heading, no_wrap=True, overflow="ellipsis")
        for heading in ("step", "loss", "held-out loss", "tokens/s", "time"):
            table.add_column(heading, justify="right", no_wrap=True)
        shown = self._chosen(max(height, 3))
        for row in shown:
            table.add_row(*self._cells(row), style=_STYLES[row["state"]])
        if hidden := len(self._rows) - len(shown):
            table.caption, table.caption_justify = f"and {hidden} more", "left"
        return table

    def _chosen(self, height: int) -> Sequence[dict]:
        rows = list(self._rows.values())
        order = (FAILED, RUNNING, STOPPED, WAITING, DONE)
        first = sorted(rows, key=lambda row: order.index(row["state"]))[:height]
        return [row for row in rows if any(row is chosen for chosen in first)]

    def _cells(self, row: dict) -> list[str]:
        lines, total = row["lines"], row["total"]
        step = lines[-1]["step"] if lines else 0
        cells = [row["run"].name, row["state"]]
        cells.append(f"{step:,}/{total:,} {100 * step / total:3.0f}%" if lines else "")
        for name, form in (
            ("train/loss", ".4f"), ("eval/loss", ".4f"), ("perf/tokens_per_second", ",.0f"),
        ):  # fmt: skip
            value = _last(lines, name)
            cells.append("" if value is None else format(value, form))
        if row["start"]:
            end = time.monotonic() if row["state"] == RUNNING else row["end"]
            cells.append(duration_text(end - row["start"]))
        else:
            cells.append("")
        return cells

    def _time_left(self) -> str:
        """All steps that are left, at the speed of those runs that run now."""
        rows = [row for row in self._rows.values() if row["state"] in (RUNNING, WAITING)]
        speeds = [_last(row["lines"], "perf/steps_per_second") for row in rows]
        speed = sum(
            each for each, row in zip(speeds, rows, strict=True) if each and row["state"] == RUNNING
        )
        steps = sum(
            row["total"] - (row["lines"][-1]["step"] if row["lines"] else 0) for row in rows
        )
        return duration_text(steps / speed) if speed else ""

    def _count(self, state: str) -> int:
        return sum(row["state"] == state for row in self._rows.values())


def _last(lines: list[dict], name: str) -> float | None:
    return next((line[name] for line in reversed(lines) if name in line), None)
