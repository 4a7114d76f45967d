"""A model's folder is written whole or not at all, and no file of another model stays in it."""

import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

import deberta_jax
from deberta_jax import locks
from deberta_jax.errors import UserError
from deberta_jax.interop import files
from deberta_jax.runs.converting import convert
from deberta_jax.runs.exporting import export
from deberta_jax.runs.writing import model_folder

RUN = Path(__file__).parents[1] / "formats" / "v2"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported")
    export(RUN, directory)
    return directory


@pytest.fixture
def out(exported, tmp_path):
    """An export, with a file of the user's."""
    shutil.copytree(exported, tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("mine")
    return tmp_path / "out"


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_an_export_waits_for_no_other_process(out):
    """The verb, the library's function and any other caller meet the same lock."""
    with locks.held(out, "convert"):
        before = contents(out)
        with pytest.raises(UserError, match=r"in use by another process \(convert, process"):
            deberta_jax.export(RUN, out)
        assert contents(out) == before


STALE = (
    "tokenizer.json", "spiece.model", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "tensors/a", "pytorch_model.bin", "pytorch_model.generator.bin",
    "generator/model.safetensors", "model.onnx",
)  # fmt: skip


@pytest.mark.parametrize("name", STALE)
def test_files_of_another_model_are_refused_and_nothing_is_written(tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("another's")
    before = contents(tmp_path)
    message = r"belongs to another (model|tokenizer)"
    with pytest.raises(UserError, match=message) as error, model_folder(tmp_path / "out") as folder:
        for own in ("model.safetensors", "config.json", "spm.model", "tokenizer_config.json"):
            (folder / own).write_text("ours")
    assert str(tmp_path / "out" / name.partition("/")[0]) in str(error.value)
    assert contents(tmp_path) == before


def test_an_export_is_written_over_an_earlier_one_alone(out):
    (out / "tokenizer.json").write_text("another's")
    before = contents(out)
    with pytest.raises(UserError, match=r"tokenizer.json belongs to another tokenizer"):
        export(RUN, out)
    assert contents(out) == before and os.listdir(out.parent) == ["out"]
    (out / "tokenizer.json").unlink()
    (out / "config.json").write_text("{}")
    assert export(RUN, out) == "step 6"
    assert (out / "README.md").read_text() == "mine"
    deberta_jax.load_pretrained(out)


def test_a_full_disk_leaves_the_earlier_export(out, tmp_path):
    """A limit on the size of files is as good as a full disk."""
    before = contents(out)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        for write in (lambda: export(RUN, out), lambda: convert(RUN, tmp_path / "new")):
            with pytest.raises(Exception, match=r"(?i)file too large"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(out) == before and os.listdir(tmp_path) == ["out"]


def test_shards_of_an_earlier_model_go(tmp_path, seed):
    rng = np.random.default_rng(seed)
    tensors = {name: rng.random((8, 8), np.float32) for name in "abcd"}
    for size, count in ((300, 5), (5 * 10**9, 1), (600, 3)):
        with model_folder(tmp_path / "out") as folder:
            files.write_tensors(tensors, folder, size)
        assert len(os.listdir(tmp_path / "out")) == count
        read = files.read_tensors(tmp_path / "out")
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(read[name], tensor)
