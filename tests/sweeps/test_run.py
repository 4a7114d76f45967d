"""Whole sweeps through the real command: failures, kills, going on, the same table."""

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.devices import UNOPTIMISED
from tests.sweeps.files import ROOT, write

# The last of them has a mesh that this machine does not have.
BODY = """def sweep():
    yield {"name": "whole"}
    yield {"name": "plain", "model.pos_att_type": ()}
    yield {"name": "broken", "mesh.fsdp": 7}"""
RUNS, STEPS = ["whole_s0", "plain_s0"], 24


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a sweep file and the prepared data."""
    directory = tmp_path_factory.mktemp("sweep")
    write(directory, BODY)
    return directory


def start(place, workdir, *arguments):
    """The command on one CPU device, in a process group of its own."""
    environment = {"XLA_FLAGS": UNOPTIMISED, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [
            sys.executable,
            *("-m", "deberta_jax.sweep", f"--sweep={place}/made_up.py", f"--workdir={workdir}"),
            *(f"--config.data.dir={place}/data", *arguments),
        ],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """(exit status, output, errors)."""
    output, errors = process.communicate(timeout=600)
    return process.returncode, output, errors


def lines_written(workdir) -> int:
    files = [workdir / "runs" / name / "metrics.jsonl" for name in RUNS]
    return sum(file.read_text().count("\n") for file in files if file.exists())


@pytest.fixture(scope="module")
def uninterrupted(place):
    return place / "uninterrupted", finish(start(place, place / "uninterrupted"))


def test_a_failed_variant_stops_no_other_and_is_reported(uninterrupted):
    workdir, (status, output, errors) = uninterrupted
    assert status == 2
    (line,) = errors.splitlines()
    assert line.startswith("error: 1 of 3 runs failed: broken_s0; the same command tries")
    assert re.search(r"broken_s0: failed after .*: error: .*mesh\.fsdp=7.* does not fit", output)
    for name in RUNS:
        assert re.search(rf"{name}: done after .*, held-out loss \d\.\d{{4}} \(", output)
    failure = (workdir / "runs" / "broken_s0" / "failure.txt").read_text()
    assert failure.startswith("exit status 2\n") and "mesh.fsdp=7" in failure
    assert "mesh.fsdp=7" in (workdir / "report.html").read_text()
    with (workdir / "results.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert [rows[name]["state"] for name in (*RUNS, "broken_s0")] == ["done", "done", "failed"]
    assert (workdir / "results.md").read_text() in output
    assert (workdir / "curves.png").exists() and (workdir / "differences.png").exists()


@pytest.mark.slow
def test_killed_twice_a_sweep_gives_the_same_table(place, uninterrupted, seed):
    """SIGKILL to everything at two random moments, between a sweep's first step and its last."""
    draw, workdir = random.Random(seed), place / "killed"
    moments = sorted(draw.sample(range(1, len(RUNS) * STEPS), 2))
    for moment in moments:
        process = start(place, workdir)
        while lines_written(workdir) < moment and process.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.random() / 2)
        os.killpg(process.pid, signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL
    status, output, _ = finish(start(place, workdir))
    assert status == 2, output  # the broken one, as ever
    for name in ("results.md", "results.csv"):
        ours, theirs = ((w / name).read_text() for w in (workdir, uninterrupted[0]))
        assert ours == theirs, (moments, name)


def test_what_is_done_is_not_run_again(place, uninterrupted):
    workdir, _ = uninterrupted
    runs = [workdir / "runs" / name for name in RUNS]
    before = {
        p: p.stat().st_mtime_ns
        for run in runs
        for p in run.rglob("*")
        if p.is_file() and p.suffix != ".hparams"
    }
    table = (workdir / "results.csv").read_bytes()
    status, output, _ = finish(start(place, workdir))
    assert status == 2
    for name in RUNS:
        assert f"{name}: done" in output and f"{name}: running" not in output
    assert "broken_s0: running" in output
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (workdir / "results.csv").read_bytes() == table


def test_a_mistake_ends_before_anything_starts(place, tmp_path):
    write(tmp_path, "def sweep():\n    yield {'name': 'a'}\n    yield {'model.hiden_size': 3}")
    status, output, errors = finish(start(tmp_path, tmp_path / "w"))
    assert status == 2 and not output and not (tmp_path / "w").exists()
    (line,) = errors.splitlines()
    assert line.startswith("error: variant hiden_size=3: config has no field 'model.hiden_size'")
