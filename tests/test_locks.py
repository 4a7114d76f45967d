"""Locks of a directory: one owner, taken over from the dead, on any machine, in any storage."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from deberta_jax import buckets, locks, storage
from deberta_jax.errors import PassingError

QUICK = locks.Timing(renewal=0.1, lease=0.6, settling=0.3)


def left_behind(directory, **changes):
    """A lock that nobody renews."""
    directory.mkdir(exist_ok=True)
    owner = dataclasses.replace(locks._this_process("train"), token="theirs", **changes)
    (directory / locks.FILE).write_text(json.dumps(dataclasses.asdict(owner)))
    return owner


def test_the_second_is_refused_with_host_and_process_of_the_first(tmp_path):
    directory = tmp_path / "new" / "run"
    with locks.held(directory, "train"):
        with (
            pytest.raises(
                PassingError, match=r"run is in use .*train, process (\d+) on (\S+)\)"
            ) as caught,
            locks.held(directory, "prepare"),
        ):
            raise AssertionError("both are in")
        assert f"process {os.getpid()} on {os.uname().nodename}" in str(caught.value)
        (directory / "mine").write_text("kept")
    assert [path.name for path in directory.iterdir()] == ["mine"]


def test_a_refused_start_leaves_no_directory(tmp_path):
    with pytest.raises(ValueError, match="refused"), locks.held(tmp_path / "run", "train"):
        raise ValueError("refused")
    assert not (tmp_path / "run").exists()


def test_the_lock_of_a_process_that_has_died_is_taken_over_at_once(tmp_path, capsys):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    # A process that has the number of a dead one is not it.
    for changes in (dict(process=child.pid), dict(begun="1")):
        left_behind(tmp_path / "run", **changes)
        begun = time.monotonic()
        with locks.held(tmp_path / "run", "train", QUICK):
            assert time.monotonic() - begun < 2
    assert capsys.readouterr().out.count("has died") == 2


def test_another_machine_s_lock_is_dead_when_it_is_not_renewed(tmp_path):
    left_behind(tmp_path, host="elsewhere", machine="another")
    begun = time.monotonic()
    with locks.held(tmp_path, "train", QUICK):
        assert time.monotonic() - begun >= QUICK.lease


def test_another_machine_s_lock_is_respected_while_it_is_renewed(tmp_path):
    owner = left_behind(tmp_path, host="elsewhere", machine="another")
    over = threading.Event()

    def renew():
        beat = 0
        while not over.wait(0.1):
            beat += 1
            storage.write(
                tmp_path / locks.FILE, json.dumps(dataclasses.asdict(owner) | {"b": beat})
            )

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with (
            pytest.raises(PassingError, match="on elsewhere"),
            locks.held(tmp_path, "train", QUICK),
        ):
            raise AssertionError("both are in")
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("before", ["nothing", "a dead owner", "half a file"])
def test_of_many_that_try_at_once_one_is_in(before, tmp_path):
    if before == "a dead owner":
        left_behind(tmp_path, begun="1")
    elif before == "half a file":
        (tmp_path / locks.FILE).write_text('{"what": "tr')
    start, over, inside, refused = threading.Barrier(8), threading.Event(), [], []

    def enter(number):
        start.wait()
        try:
            with locks.held(tmp_path, f"train {number}", QUICK, lost=refused.append):
                inside.append(number)
                over.wait(10)
        except PassingError as error:
            refused.append(str(error))
        if len(refused) == 7:
            over.set()

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inside) == 1 and len(refused) == 7


def test_an_owner_whose_lock_was_taken_is_told(tmp_path):
    told = threading.Event()
    with locks.held(tmp_path, "train", QUICK, lost=lambda line: told.set()):
        left_behind(tmp_path, host="elsewhere")
        assert told.wait(5)
    assert (tmp_path / locks.FILE).exists()  # theirs is not taken from them


def test_a_bucket_s_object_is_made_by_one():
    """The request that a bucket has for it, on fsspec's storage in memory."""
    pytest.importorskip("fsspec")
    name = f"memory://{time.time_ns()}/lock"
    assert buckets.create(name, "first")
    assert not buckets.create(name, "second")
