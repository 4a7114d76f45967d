"""Cores and devices divided; a workdir claimed by one sweep; what is kept of a failed run."""

import os
import subprocess
import sys

import pytest

from deberta_jax.errors import UserError
from deberta_jax.sweeps import processes
from deberta_jax.sweeps.processes import claimed, divide, failure_text


def test_cores_are_divided_among_all_and_shared_by_none(monkeypatch):
    monkeypatch.setattr(processes, "_cores", lambda: set(range(3, 10)))
    monkeypatch.setattr(processes, "_devices", lambda: ("cpu", 1))
    for parallel in range(2, 8):
        shares = [sorted(slot.cores) for slot in divide(parallel)]
        assert len(shares) == parallel
        assert sorted(core for share in shares for core in share) == list(range(3, 10))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for wrong in (0, 8):
        with pytest.raises(UserError, match=f"--parallel={wrong} must be 1 to 7"):
            divide(wrong)


def test_devices_are_divided_evenly_or_not_at_all(monkeypatch):
    monkeypatch.setattr(processes, "_cores", lambda: set(range(16)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(processes, "_devices", lambda: ("gpu", 4))
    seen = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in divide(2)]
    assert seen == ["4,5", "6,7"]
    with pytest.raises(UserError, match="--parallel=3 does not divide the 4 gpu devices"):
        divide(3)
    monkeypatch.setattr(processes, "_devices", lambda: ("tpu", 4))
    assert [slot.environment["TPU_VISIBLE_CHIPS"] for slot in divide(4)] == list("0123")
    with pytest.raises(UserError, match="divided by chip, so --parallel=4"):
        divide(2)


def test_a_process_left_behind_keeps_the_workdir(tmp_path):
    """What a killed sweep started still runs: a second one must not train in the same place."""
    with claimed(tmp_path) as lock, pytest.raises(UserError, match="is in use"), claimed(tmp_path):
        pass
    with claimed(tmp_path) as lock:
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock]
        )
    with pytest.raises(UserError, match="runs of one that was killed"), claimed(tmp_path):
        pass
    child.communicate(b"\n")
    with claimed(tmp_path):
        pass


def test_a_failure_is_its_status_and_last_lines(tmp_path):
    lines = [f"line {i}\rline {i} again" for i in range(40)]
    (tmp_path / "log.txt").write_text("\n".join(lines) + "\n\nerror: no such thing\n")
    kept = failure_text(tmp_path, 2).splitlines()
    assert kept[0] == "exit status 2" and kept[-1] == "error: no such thing"
    assert kept[-2] == "line 39 again" and len(kept) < 20
    assert failure_text(tmp_path, -9).startswith("killed by SIGKILL")


def test_slots_are_real(tmp_path):
    """A run sees the cores of its slot alone."""
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("one core cannot be divided")
    slot = processes.Slot(frozenset(list(cores)[:1]))
    with claimed(tmp_path) as lock:
        pool = processes.Pool([slot], lock, {})
        pool.start("a", tmp_path / "a", ["--help"])
        assert not pool.free and pool.running == ["a"]
        process = pool._running["a"][0]
        assert os.sched_getaffinity(process.pid) == slot.cores
        process.wait()
        assert pool.ended() == [("a", process.returncode)] and pool.free
    assert "deberta_jax" in (tmp_path / "a" / "log.txt").read_text()
