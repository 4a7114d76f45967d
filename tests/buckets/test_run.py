"""A whole run in a bucket: prepared, trained, stopped, resumed, evaluated, exported, loaded."""

import os
import signal

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax import storage
from deberta_jax.data import dataset
from deberta_jax.runs import pretraining
from deberta_jax.training.metrics import read_metrics
from tests import tiny_recipe

STEPS, STOP_AFTER = 6, 4


def recipe(data):
    config = tiny_recipe.get_config()
    config.data.dir = data
    config.train.duration = f"{STEPS} steps"
    config.train.checkpoint_every = "2 steps"
    config.train.norms_every = "0"
    config.train.eval_every = f"{STEPS} steps"
    config.train.eval_batches = 1
    return config


@pytest.fixture(scope="module")
def run(gcs, tmp_path_factory):
    """(the recipe, the run in a bucket, the same run on the disk, the metrics of both)."""
    folder = f"{gcs}/{tmp_path_factory.mktemp('run').name}"
    config, workdir = recipe(f"{folder}/data"), f"{folder}/run"
    deberta_jax.prepare(config, workdir)
    train_batches = pretraining.train_batches

    def stopping(*arguments, **options):
        for number, batch in enumerate(train_batches(*arguments, **options)):
            if number == STOP_AFTER - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "train_batches", stopping)
        assert deberta_jax.train(config, workdir) is None
    half_of_a_checkpoint(storage.as_path(workdir) / "checkpoints")
    own = deberta_jax.train(config, workdir)
    local = tmp_path_factory.mktemp("local")
    return config, workdir, local, own, deberta_jax.train(config, local)


def half_of_a_checkpoint(checkpoints):
    """What a process that is killed while it saves leaves: all but the file that commits it."""
    steps = [path.name for path in storage.children(checkpoints) if path.name.isdigit()]
    source, target = checkpoints / max(steps, key=int), checkpoints / str(STEPS - 1)
    for file in storage.files(f"{os.fspath(source)}/**"):
        name = file.removeprefix(f"{os.fspath(source)}/")
        if name != "commit_success.txt":
            storage.write(target / name, storage.read_bytes(file))


def test_a_resumed_run_in_a_bucket_ends_as_an_uninterrupted_one_on_a_disk(run):
    _, workdir, local, own, expected = run
    assert own == expected
    params = [deberta_jax.open_run(path).params for path in (workdir, local)]
    for ours, theirs in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    series = [
        [
            {k: v for k, v in line.items() if not k.startswith("perf/")}
            for line in read_metrics(path)
        ]
        for path in (storage.as_path(workdir), local)
    ]
    assert series[0] == series[1] and series[0][-1]["step"] == STEPS
    names = {path.name for path in storage.children(workdir)}
    assert {"config.json", "checkpoints", "tokenizer", "curves.png", "tensorboard"} <= names


def learned(workdir):
    """The lines of metrics.jsonl without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if not name.startswith("perf/")}
        for line in read_metrics(workdir)
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
    _, workdir, local, own, _ = run
    assert deberta_jax.evaluate(workdir) == pytest.approx(own, rel=1e-6)
    deberta_jax.export(workdir, f"{workdir}/export")
    deberta_jax.export(local, tmp_path / "export")
    deberta_jax.convert(f"{workdir}/export", f"{workdir}/orbax", "orbax")
    expected = deberta_jax.read_checkpoint(tmp_path / "export").tensors
    for exported in ("export", "orbax"):
        tensors = deberta_jax.read_checkpoint(f"{workdir}/{exported}").tensors
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, expected[name])
    text = "To be, or not to be"
    tokenizers = [
        deberta_jax.load_tokenizer(path) for path in (f"{workdir}/export", local / "tokenizer")
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
