"""Whole sessions of the smallest run: stopped, damaged, mixed up, out of disk, and resumed."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.training import signals
from deberta_jax.training.checkpoints import SET_ASIDE, Checkpoints
from tests.training import linear

SETTINGS = linear.config()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    assert linear.train(SETTINGS, workdir) is not None
    return workdir


@pytest.fixture
def stopped(whole, tmp_path):
    """A run of the same kind with checkpoints of steps 3 and 6."""
    workdir = tmp_path / "run"
    sent = []

    def read(sample):
        for number, batch in enumerate(linear.batches(sample)):
            if number == 5:
                os.kill(os.getpid(), signal.SIGTERM)
                sent.append(number)
            yield batch

    assert linear.train(SETTINGS, workdir, read=read) is None and sent
    assert steps(workdir) == [3, 6]
    return workdir


def steps(workdir):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.latest() is not None
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def arrays(workdir):
    """The newest checkpoint's, by name."""
    import orbax.checkpoint as ocp

    with Checkpoints(workdir, read_only=True) as checkpoints:
        path = workdir / "checkpoints" / str(checkpoints.latest()) / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        leaves = jax.tree.leaves_with_path(reader.restore(path.absolute()))
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in leaves}


def assert_same(workdir, whole):
    ours, want = arrays(workdir), arrays(whole)
    assert ours.keys() == want.keys() and len(want) > 5
    for name in want:
        np.testing.assert_array_equal(ours[name], want[name], err_msg=name)
    assert measured(workdir) == measured(whole)


def measured(workdir):
    """Every line of the metrics, without times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def test_a_stopped_run_ends_as_if_it_had_not_been(stopped, whole):
    assert linear.train(SETTINGS, stopped) is not None
    assert_same(stopped, whole)


def test_a_damaged_checkpoint_is_set_aside_and_the_run_goes_on_from_the_one_before(
    stopped, whole, seed, capsys
):
    files = [p for p in (stopped / "checkpoints/6").rglob("*") if p.is_file()]
    files = [p for p in files if p.stat().st_size and p.name != "commit_success.txt"]
    rng = np.random.default_rng(seed)
    chosen = files[rng.integers(len(files))]
    data = bytearray(chosen.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    chosen.write_bytes(data)
    linear.train(SETTINGS, stopped)
    output = capsys.readouterr().out
    assert f"checkpoints/6 is damaged ({chosen.relative_to(stopped / 'checkpoints/6')}" in output
    assert "going on after step 3 of 9" in output
    assert (stopped / SET_ASIDE / "6").is_dir()
    assert_same(stopped, whole)


def test_another_run_s_checkpoint_is_refused_by_name(stopped, whole, tmp_path):
    other = tmp_path / "other"
    linear.train(linear.config(steps=12), other)
    shutil.copytree(other / "checkpoints/12", stopped / "checkpoints/12")
    theirs = json.loads((other / "identity.json").read_text())["run"]
    ours = json.loads((stopped / "identity.json").read_text())["run"]
    with pytest.raises(UserError, match=rf"checkpoints/12 is of another run \({theirs}\).*{ours}"):
        linear.train(SETTINGS, stopped)
    shutil.rmtree(stopped / "checkpoints/12")
    linear.train(SETTINGS, stopped)
    assert_same(stopped, whole)


def test_a_checkpoint_under_another_step_s_name_is_set_aside(stopped, whole, capsys):
    shutil.copytree(stopped / "checkpoints/3", stopped / "checkpoints/8")
    linear.train(SETTINGS, stopped)
    assert "8 is damaged (it is a copy of the checkpoint of step 3)" in capsys.readouterr().out
    assert_same(stopped, whole)


def test_where_no_checkpoint_is_whole_nothing_is_moved_and_nothing_begins_anew(stopped):
    for step in (3, 6):
        (stopped / f"checkpoints/{step}/clock/metadata").write_text("{}")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole \(6: clock/metadata is"):
        linear.train(SETTINGS, stopped)
    assert steps(stopped) == [3, 6] and not (stopped / SET_ASIDE).exists()


def test_a_checkpoint_of_an_older_version_has_no_digests_and_is_taken(stopped, whole):
    for step in (3, 6):
        folder = stopped / "checkpoints" / str(step)
        (folder / "digests.json").unlink()
        metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
        metadata["custom_metadata"] = {}
        (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))
    (stopped / "identity.json").unlink()
    linear.train(SETTINGS, stopped)
    assert_same(stopped, whole)


def test_an_evaluation_that_is_given_up_is_made_by_the_next_session(whole, tmp_path):
    """The state is saved as it is; the last step's too, and the metrics are the same."""
    workdir, settings = tmp_path / "run", SETTINGS
    best = dataclasses.replace(settings.train, best_metric="eval/loss")
    settings = dataclasses.replace(settings, train=best)

    def told(params):
        os.kill(os.getpid(), signal.SIGTERM)
        signals.check()
        raise AssertionError("the evaluation went on")

    measured_at_5 = []

    def once(params):
        if measured_at_5:
            told(params)
        measured_at_5.append(params)
        return {"eval/loss": 1e9}

    assert linear.train(settings, workdir, measure=told) is None
    assert steps(workdir)[-1] == 5
    assert linear.train(settings, workdir, measure=once) is None  # what is due after 5 comes first
    assert steps(workdir)[-1] == 9 and measured_at_5
    assert linear.train(settings, workdir) is not None
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.best() == 9
    lines = [line["step"] for line in measured(workdir) if "eval/loss" in line]
    assert lines == [5, 9]
    ours, want = arrays(workdir), arrays(whole)
    for name in want:
        np.testing.assert_array_equal(ours[name], want[name], err_msg=name)


def test_a_save_that_fails_ends_no_run_and_the_next_one_tries_again(whole, tmp_path, capsys):
    """The folder of the checkpoints is away for a while, as a disk or a mount is."""
    folder, away = tmp_path / "checkpoints", tmp_path / "away"

    def read(sample):
        for number, batch in enumerate(linear.batches(sample)):
            if number == 1:
                folder.rename(away)
                folder.write_text("in the way")
            elif number == 4:
                folder.unlink()
                away.rename(folder)
            yield batch

    settings = linear.config(checkpoint_every="1 step", keep_checkpoints=99)
    linear.train(settings, tmp_path, read=read)
    output = capsys.readouterr().out
    assert "a checkpoint could not be written (step 2: " in output
    assert set(steps(tmp_path)) >= {5, 6, 7, 8, 9} and not {2, 3} & set(steps(tmp_path))
    assert_same(tmp_path, whole)


def test_checkpoints_by_the_clock(tmp_path):
    linear.train(linear.config(checkpoint_every="0.0001 seconds", keep_checkpoints=99), tmp_path)
    assert steps(tmp_path) == list(range(1, 10))


@pytest.mark.parametrize("field", ["watchdog_seconds", "heartbeat_seconds"])
def test_times_that_make_no_sense_are_refused(field):
    with pytest.raises(UserError, match=rf"train\.{field} is -1"):
        linear.config(**{field: -1})


def test_the_step_is_traced_once(tmp_path, monkeypatch):
    """The guard's state is of the host before the first step, and of the devices after it."""
    traced, loss = [], linear.Line.loss

    def counted(self, params, batch, weights, rng, train):
        traced.append(train)
        return loss(self, params, batch, weights, rng, train)

    monkeypatch.setattr(linear.Line, "loss", counted)
    linear.train(linear.config(steps=3), tmp_path)
    assert traced.count(True) == 1
