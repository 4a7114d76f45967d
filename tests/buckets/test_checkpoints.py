"""Checkpoints in a bucket, whose folders cannot be renamed."""

import os

import numpy as np
import pytest

from deberta_jax import storage
from deberta_jax.training import checkpoints, digests
from deberta_jax.training.checkpoints import Checkpoints

RUN = "0123456789abcdef"


STEPS = (1, 2, 3)


@pytest.fixture(scope="module")
def written(gcs, tmp_path_factory):
    """(a workdir with checkpoints, what they hold by step)."""
    workdir = storage.as_path(f"{gcs}/{tmp_path_factory.mktemp('checkpoints').name}")
    values = {step: np.random.default_rng().random(3, np.float32) for step in STEPS}
    with Checkpoints(workdir, keep=5) as opened:
        opened.of_run(RUN)
        for step in STEPS:
            save(opened, step, values[step])
    return workdir, values


def save(opened, step, value):
    opened.save(step, {"x": value}, {"next_step": step}, {"seconds": 0.0})
    assert not opened.problem()


def copied(written, to):
    """A workdir with copies of them."""
    source, _ = written
    workdir = storage.as_path(f"{os.fspath(source)}_{to}")
    for file in storage.files(f"{os.fspath(source)}/**"):
        name = file.removeprefix(f"{os.fspath(source)}/")
        storage.write(workdir / name, storage.read_bytes(file))
    return workdir


def restored(workdir):
    """The newest checkpoint, and what was said about those that were set aside."""
    with Checkpoints(workdir, keep=5) as opened:
        notes = opened.of_run(RUN)
        found = opened.restore({"x": np.zeros(3, np.float32)})
    return found.input["next_step"], found.state["x"], notes


def names(folder):
    return {path.name for path in storage.children(folder)}


def test_damaged_ones_are_set_aside(written):
    workdir, values = copied(written, "damaged"), written[1]
    folder = workdir / checkpoints.FOLDER
    kept = names(folder / "3") - {digests.COMMIT}
    (folder / "3" / digests.COMMIT).unlink()
    storage.write(folder / "2" / "input" / "metadata", "{}")
    step, state, notes = restored(workdir)
    assert step == 1 and len(notes) == 2
    assert f"{digests.COMMIT} is missing" in notes[0] and "input/metadata is damaged" in notes[1]
    np.testing.assert_array_equal(state, values[1])
    assert names(folder) == {"1"}
    assert names(workdir / checkpoints.SET_ASIDE) == {"2", "3"}
    assert names(workdir / checkpoints.SET_ASIDE / "3") == kept


def test_moves_that_were_cut_short_are_undone(written):
    """A bucket copies a checkpoint that is to be written anew, and then deletes it."""
    workdir, values = copied(written, "cut_short"), written[1]
    folder = workdir / checkpoints.FOLDER
    for step in (2, 3):
        for file in storage.files(f"{os.fspath(folder)}/{step}/**"):
            name = file.removeprefix(f"{os.fspath(folder)}/{step}/")
            if step == 3 or name != digests.COMMIT:  # 2 was being copied
                storage.write(folder / f"{step}.replaced" / name, storage.read_bytes(file))
    (folder / "3" / digests.COMMIT).unlink()  # 3 was being deleted
    step, state, notes = restored(workdir)
    assert (step, notes) == (3, []) and names(folder) == {"1", "2", "3"}
    np.testing.assert_array_equal(state, values[3])
    assert names(folder / "2") == names(folder / "3")


def test_one_is_written_anew_and_the_old_one_goes(written):
    workdir, values = written
    with Checkpoints(workdir, keep=5) as opened:
        opened.of_run(RUN)
        opened.replace(3)
        assert opened.latest() == 2
        save(opened, 3, 2 * values[3])
    assert "3.replaced" in names(workdir / checkpoints.FOLDER)
    step, state, notes = restored(workdir)
    assert (step, notes) == (3, []) and names(workdir / checkpoints.FOLDER) == {"1", "2", "3"}
    np.testing.assert_array_equal(state, 2 * values[3])
