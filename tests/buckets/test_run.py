"""A whole run in a bucket: prepared, trained, resumed, evaluated, exported, loaded."""

import os

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax import storage
from deberta_jax.data import dataset
from deberta_jax.runs.evaluating import held_out_metrics
from deberta_jax.training import digests
from deberta_jax.training.metrics import read_metrics
from tests import tiny_recipe

STEPS, KEPT = 4, 2


def recipe(data):
    config = tiny_recipe.get_config()
    config.data.dir = data
    # The least that is traced and compiled.
    config.model.num_hidden_layers = 1
    config.model.enhanced_mask_decoder = False
    config.model.pos_att_type = ()
    config.train.duration = f"{STEPS} steps"
    config.train.checkpoint_every = "2 steps"
    config.train.keep_checkpoints = 2
    config.train.norms_every = "0"
    config.train.eval_every = f"{STEPS} steps"
    config.train.eval_batches = 1
    return config


@pytest.fixture(scope="module")
def run(gcs, tmp_path_factory):
    """(the recipe, a run in a bucket that was killed at its end and resumed, what both starts
    gave)."""
    folder = f"{gcs}/{tmp_path_factory.mktemp('run').name}"
    config, workdir = recipe(f"{folder}/data"), f"{folder}/run"
    deberta_jax.prepare(config, workdir)
    starts = []
    for start in range(2):
        held_out = deberta_jax.train(config, workdir)
        starts.append((held_out, learned(workdir), deberta_jax.open_run(workdir)))
        if start == 0:  # as if it had been killed while it wrote its last checkpoint
            (storage.as_path(workdir) / "checkpoints" / f"{STEPS}" / digests.COMMIT).unlink()
    return config, workdir, *starts


def test_a_resumed_run_ends_as_the_uninterrupted_one(run):
    _, workdir, (expected, series, whole), (own, own_series, resumed) = run
    assert own == expected
    for ours, theirs in zip(*map(jax.tree.leaves, (resumed.params, whole.params)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert own_series == series and {line["step"] for line in series} == set(range(1, STEPS + 1))
    steps = [path.name for path in storage.children(f"{workdir}/checkpoints")]
    assert steps == [f"{KEPT}", f"{STEPS}"]
    set_aside = [path.name for path in storage.children(f"{workdir}/damaged_checkpoints")]
    assert set_aside == [f"{STEPS}"]
    names = {path.name for path in storage.children(workdir)}
    assert {"config.json", "checkpoints", "tokenizer", "curves.png", "tensorboard"} <= names
    assert ".lock.json" not in names


def learned(workdir):
    """The lines of metrics.jsonl without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if not name.startswith("perf/")}
        for line in read_metrics(storage.as_path(workdir))
    ]


def test_records_are_those_that_were_written(run):
    config, workdir, *_ = run
    prepared = dataset.load(config.data.dir)
    copy = dataset.load(storage.local_copy(config.data.dir))
    for split, counts in prepared.metadata.splits.items():
        rows, others = prepared.source(split), copy.source(split)
        assert len(rows) == counts.sequences
        for index in (0, counts.sequences // 2, counts.sequences - 1):
            for name, value in rows[index].items():
                np.testing.assert_array_equal(value, others[index][name])
    listed = [os.path.basename(path) for path in storage.files(f"{config.data.dir}/*")]
    assert "metadata.json" in listed
    assert deberta_jax.prepare(config, workdir) == prepared.metadata


def test_it_is_evaluated_exported_converted_and_loaded(run, gcs, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _, workdir, _, (own, _, resumed) = run
    assert held_out_metrics(resumed) == pytest.approx(own, rel=1e-6)
    deberta_jax.export(workdir, f"{workdir}/export")
    deberta_jax.convert(f"{workdir}/export", f"{workdir}/orbax", "orbax")
    expected = resumed.released().tensors
    for exported in ("export", "orbax"):
        tensors = deberta_jax.read_checkpoint(f"{workdir}/{exported}").tensors
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, expected[name])
    text = "To be, or not to be"
    tokenizers = [
        deberta_jax.load_tokenizer(f"{workdir}/{folder}") for folder in ("export", "tokenizer")
    ]
    assert tokenizers[0].encode(text).tolist() == tokenizers[1].encode(text).tolist()


def test_another_run_is_refused_and_leaves_nothing(run, gcs):
    config, workdir, *_ = run
    config = recipe(config.data.dir)
    config.model.hidden_size = 64
    before = storage.files(f"{workdir}/**")
    with pytest.raises(deberta_jax.UserError, match="was started with another model"):
        deberta_jax.train(config, workdir)
    assert storage.files(f"{workdir}/**") == before
    config.data.dir = f"{gcs}/none"
    with pytest.raises(deberta_jax.UserError, match="no prepared data in gs://"):
        deberta_jax.train(config, f"{workdir}_other")
    assert not storage.as_path(f"{workdir}_other").exists()
