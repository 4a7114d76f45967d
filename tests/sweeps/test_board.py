"""The table of a running sweep, and the lines in its place where there is no terminal."""

import io
import json

import pytest
from rich.console import Console

from deberta_jax.sweeps.board import DONE, FAILED, RUNNING, Board
from deberta_jax.sweeps.variants import make_run
from tests.tiny_recipe import get_config


@pytest.fixture
def runs(tmp_path):
    made = [make_run(get_config(), {"name": f"v{i}"}, tmp_path) for i in range(12)]
    for run in made[:2]:
        run.workdir.mkdir(parents=True)
        lines = [
            {"step": 10, "train/loss": 4.25, "perf/tokens_per_second": 1234.0},
            {"step": 12, "eval/loss": 4.5, "perf/steps_per_second": 2.0},
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run.workdir / "metrics.jsonl").write_text(text)
    return made


def shown(console, runs) -> str:
    with Board("made up", console) as board:
        for run in runs:
            board.add(run, 24)
        board.change("v0_s0", RUNNING)
        board.change("v0_s0", DONE)
        board.change("v1_s0", RUNNING)
        board.change("v11_s0", RUNNING)
        board.change("v11_s0", FAILED, "error: it does not fit")
        board.look()
    return console.file.getvalue()


def test_a_terminal_shows_where_every_run_stands(runs):
    console = Console(
        file=io.StringIO(), force_terminal=True, width=100, height=14, color_system=None
    )
    last = shown(console, runs).split("made up: ")[-1].splitlines()
    # 12 steps of v1 and 24 of each that waits, at 2 a second.
    want = "9 waiting, 1 running, 1 done, 1 failed; about 1:54 left"
    assert last[0].rstrip() == want
    rows = {line.split()[0]: line for line in last[1:] if line.startswith("v")}
    for cell in ("running", "12/24", "50%", "4.2500", "4.5000", "1,234"):
        assert cell in rows["v1_s0"], rows
    assert "failed" in rows["v11_s0"], "what failed is never out of sight"
    assert len(rows) == 8 and any("and 4 more" in line for line in last)
    assert all(len(line) <= 100 for line in last)


def test_a_file_gets_a_line_whenever_something_happens(runs):
    lines = shown(Console(file=io.StringIO(), width=40), runs).splitlines()
    assert lines[0] == "v0_s0: running (0 of 12 done)"
    assert lines[1] == "v0_s0: done after 0:00, held-out loss 4.5000 (1 of 12 done)"
    assert lines[-1] == "v11_s0: failed after 0:00: error: it does not fit (1 of 12 done)"
