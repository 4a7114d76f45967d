"""Checkpoints: whole, exact, on any mesh; and never half a one."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deberta_jax.errors import UserError
from deberta_jax.objectives.mlm import MaskedLanguageModelling
from deberta_jax.parallel.mesh import MeshConfig, make_mesh
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.state import TrainState, abstract_params, abstract_state
from tests.devices import on_eight_devices
from tests.model import small

CLOCK = {"seconds": 12.5, "tokens": 1000.0}


def position(step):
    return {"next_step": step, "batch_size": 8, "seed": 3}


def random_state(seed, step=0, width=7):
    rng = np.random.default_rng(seed)
    params = {
        "dense": {"kernel": rng.normal(size=(300, width)), "bias": rng.normal(size=width)},
        "norm": {"scale": rng.normal(size=3)},
    }
    params = jax.tree.map(jnp.float32, params)
    _, opt_state = optax.adamw(1e-3).update(params, optax.adamw(1e-3).init(params), params)
    return TrainState(jnp.int32(step), params, opt_state)


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def save(workdir, states, keep=5):
    with Checkpoints(workdir, keep) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, position(step), CLOCK)
        checkpoints.wait()


def restore(workdir, like):
    with Checkpoints(workdir, 5) as checkpoints:
        return checkpoints.restore(shapes(like))


def assert_equal(ours, want):
    assert jax.tree.structure(ours) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_everything_comes_back_to_the_last_bit(seed, tmp_path):
    states = {step: random_state(seed + step, step) for step in (5, 10)}
    save(tmp_path, states)
    found = restore(tmp_path, states[10])
    assert_equal(found.state, states[10])
    assert found.input == position(10) and found.clock == CLOCK


def test_a_state_that_changes_after_save_is_saved_as_it_was(seed, tmp_path):
    """The step donates the state's buffers while the checkpoint is still being written."""
    state = random_state(seed)
    before = jax.tree.map(np.array, state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, position(1), CLOCK)
        jax.tree.map(lambda x: x.delete(), state)
    assert_equal(restore(tmp_path, random_state(seed)).state, before)


def test_only_the_latest_are_kept(seed, tmp_path):
    save(tmp_path, {step: random_state(seed, step) for step in (1, 2, 3, 4)}, keep=2)
    left = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert left == {"3", "4"}


def test_without_a_checkpoint_a_run_starts_anew(seed, tmp_path):
    assert restore(tmp_path, random_state(seed)) is None


@pytest.mark.parametrize("folder", ["nothing there", "empty folder"])
def test_reading_where_no_checkpoint_is_says_so(folder, seed, tmp_path):
    if folder == "empty folder":
        (tmp_path / "checkpoints").mkdir()
    with (
        pytest.raises(UserError, match="holds no checkpoint"),
        Checkpoints(tmp_path, read_only=True) as checkpoints,
    ):
        checkpoints.restore_params(shapes(random_state(seed).params))


@pytest.mark.parametrize("read_only", [False, True])
def test_a_stray_folder_with_a_number_for_a_name_is_no_checkpoint(read_only, seed, tmp_path):
    save(tmp_path, {4: random_state(seed, 4)})
    (tmp_path / "checkpoints" / "9").mkdir()
    (tmp_path / "checkpoints" / "900").mkdir()
    (tmp_path / "checkpoints" / "900" / "notes.txt").write_text("mine")
    with Checkpoints(tmp_path, read_only=read_only) as checkpoints:
        assert checkpoints.latest() == 4


def test_a_checkpoint_cut_short_is_never_read_and_can_be_written_again(seed, tmp_path):
    states = {step: random_state(seed + step, step) for step in (2, 4)}
    save(tmp_path, states)
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "checkpoints" / "4", whole)
    (commit,) = (tmp_path / "checkpoints" / "4").glob("*commit*")
    commit.unlink()  # the last thing that is written
    assert_equal(restore(tmp_path, states[2]).state, states[2])
    save(tmp_path, {4: states[4]})
    assert_equal(restore(tmp_path, states[4]).state, states[4])


def data_files(workdir, step):
    return [
        path
        for path in sorted((workdir / "checkpoints" / str(step)).rglob("*"))
        if path.is_file() and "commit" not in path.name
    ]


@pytest.mark.parametrize("damage", ["everything cut in half", "state gone", "arrays gone"])
def test_a_damaged_checkpoint_is_an_error_that_names_it(damage, seed, tmp_path):
    states = {step: random_state(seed + step, step) for step in (2, 4)}
    save(tmp_path, states)
    folder = tmp_path / "checkpoints" / "4"
    if damage == "everything cut in half":
        for path in data_files(tmp_path, 4):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "state gone":
        shutil.rmtree(folder / "state")
    else:
        for path in data_files(tmp_path, 4):
            if path.parent.name == "d":
                path.unlink()
    with pytest.raises(UserError, match=r"checkpoints/4 cannot be read") as caught:
        restore(tmp_path, states[4])
    assert "delete that folder" in str(caught.value)
    with (
        pytest.raises(UserError, match=r"checkpoints/4 cannot be read"),
        Checkpoints(tmp_path, read_only=True) as checkpoints,
    ):
        checkpoints.restore_params(shapes(states[4].params))
    shutil.rmtree(folder)
    assert_equal(restore(tmp_path, states[2]).state, states[2])


def test_a_checkpoint_of_another_model_is_an_error(seed, tmp_path):
    save(tmp_path, {4: random_state(seed, 4)})
    with pytest.raises(UserError, match=r"checkpoints/4 cannot be read"):
        restore(tmp_path, random_state(seed, 4, width=8))


def test_parameters_are_read_without_the_optimizer_s_state(seed, tmp_path):
    state = random_state(seed, 4)
    save(tmp_path, {4: state})
    before = {path: path.stat().st_mtime_ns for path in data_files(tmp_path, 4)}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        step, params = checkpoints.restore_params(shapes(state.params))
    assert step == 4
    assert_equal(params, state.params)
    assert before == {path: path.stat().st_mtime_ns for path in data_files(tmp_path, 4)}


def test_a_run_can_go_on_on_another_mesh(seed, tmp_path):
    on_eight_devices(check_another_mesh, tmp_path, seed)


def check_another_mesh(workdir, seed):
    """Saved on data 8; read back on data 2 x fsdp 2 x tensor 2, whole and the parameters alone."""
    objective = MaskedLanguageModelling(small.variant(num_hidden_layers=2))
    optimizer = optax.adamw(1e-3)
    abstract, initialize = abstract_state(objective, optimizer, make_mesh(MeshConfig(8, 1, 1)))
    state = initialize(jax.random.key(int(seed)))
    save(Path(workdir), {7: state})
    assert state.params["lm_head"]["dense"]["kernel"].sharding.is_fully_replicated

    mesh = make_mesh(MeshConfig(2, 2, 2))
    abstract, _ = abstract_state(objective, optimizer, mesh)
    with Checkpoints(Path(workdir)) as checkpoints:
        found = checkpoints.restore(abstract)
        step, params = checkpoints.restore_params(abstract_params(objective, mesh))
    assert step == 7
    assert_equal(found.state, state)
    assert_equal(params, state.params)
    for ours, asked in zip(jax.tree.leaves(found.state), jax.tree.leaves(abstract), strict=True):
        assert ours.sharding == asked.sharding
    for ours, asked in zip(jax.tree.leaves(params), jax.tree.leaves(abstract.params), strict=True):
        assert ours.sharding == asked.sharding
    table = found.state.params["embeddings"]["word_embeddings"]["embedding"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(60, 24)}
