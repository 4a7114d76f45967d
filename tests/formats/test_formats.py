"""What an older program wrote is still read: each schema's run trains on, evaluates, exports."""

import json
import shutil
from pathlib import Path

import pytest

import deberta_jax
from deberta_jax import migrations, schema
from deberta_jax.data import metadata
from deberta_jax.errors import UserError
from deberta_jax.training.metrics import read_metrics

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.glob("v*"))
STEPS = 6


@pytest.fixture(scope="module", params=VERSIONS)
def workdir(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("formats") / request.param
    shutil.copytree(HERE / request.param, directory)
    return directory


def config_of(workdir, **train):
    config = schema.default()
    values = schema.load(workdir / "config.json")
    for name, value in schema.flatten(values).items():
        with config.unlocked():
            config.update_from_flattened_dict({name: value})
    config.train.update(train)
    return schema.freeze(config)


def test_every_schema_has_a_run():
    assert [f"v{n}" for n in range(1, migrations.CONFIG_VERSION + 1)] == VERSIONS


def test_it_is_evaluated_exported_and_loaded(workdir, tmp_path):
    last = read_metrics(workdir)[-1]
    metrics = deberta_jax.evaluate(workdir)
    for name, value in metrics.items():
        if name in last:
            assert value == pytest.approx(last[name], rel=1e-5), name
    deberta_jax.export(workdir, tmp_path)
    model, _ = deberta_jax.load_pretrained(tmp_path, "masked_lm")
    assert model.config == schema.load(workdir / "config.json").model
    assert deberta_jax.load_tokenizer(tmp_path).encode("the river").size


def test_it_trains_on_from_where_it_stood(workdir):
    config = config_of(workdir, duration=f"{STEPS + 2} steps")
    deberta_jax.train(config, workdir)
    steps = [line["step"] for line in read_metrics(workdir) if "train/loss" in line]
    assert steps == list(range(1, STEPS + 3))
    written = json.loads((workdir / "config.json").read_text())
    assert written["version"] == migrations.CONFIG_VERSION


def test_its_corpus_counts_as_prepared(workdir, capsys):
    deberta_jax.prepare(config_of(workdir), workdir)
    assert "prepared already" in capsys.readouterr().out


BAD_CONFIGS = {
    "no JSON": ('{"seed": ', "no JSON"),
    "a list": ("[]", "holds no config"),
    "newer": (json.dumps({"version": 999}), "schema version 999.*newer deberta_jax"),
    "version is text": (json.dumps({"version": "2"}), "version is '2'"),
    "a section is a number": (json.dumps({"model": 3}), "model must be a section"),
    "a field of that name": (
        json.dumps({"model": {"hidden_sise": 3}}),
        "'model.hidden_sise'.*model.hidden_size",
    ),
    "a section of that name": (json.dumps({"modle": {}}), "'modle'.*nearest is model"),
    "a value's type": (json.dumps({"model": {"hidden_size": "3"}}), "hidden_size is '3'.*type int"),
    "true is no number": (json.dumps({"seed": True}), "seed is True"),
    "a later section": (json.dumps({"compute": {"dtpye": "x"}}), "'compute.dtpye'.*compute.dtype"),
    "a later section's type": (json.dumps({"compute": 3}), "compute must be a section"),
    "a value": (json.dumps({"version": 2, "compute": {"dtype": "float8"}}), "compute.dtype"),
    "a list of numbers": (json.dumps({"model": {"pos_att_type": [1]}}), "pos_att_type"),
}


@pytest.mark.parametrize("text, message", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_config_that_is_none_is_one_line(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        schema.load(path)
    assert str(path) in str(error.value) or "compute" in str(error.value)


def test_fields_that_a_file_lacks_have_their_defaults(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"seed": 3, "model": {"hidden_size": 120, "remat": "dots"}}))
    config = schema.load(path)
    assert (config.seed, config.model.hidden_size, config.compute.remat) == (3, 120, "dots")
    assert config.train == schema.Config().train


@pytest.mark.parametrize("change", ["lacks a setting", "damaged", "no number", "newer", "no split"])
def test_metadata_of_other_programs(tmp_path, change):
    stored = json.loads((HERE / "v1" / "data" / "metadata.json").read_text())
    if change == "lacks a setting":
        del stored["settings"]["max_document_megabytes"]
    elif change == "damaged":
        stored["splits"]["train"]["tokens"] = "many"
    elif change == "no number":
        stored["settings"]["sequence_length"] = float("inf")
    elif change == "newer":
        stored["format"] = metadata.FORMAT + 1
    else:
        del stored["splits"]["validation"]
    (tmp_path / "metadata.json").write_text(json.dumps(stored))
    if change == "lacks a setting":
        read = metadata.read_metadata(str(tmp_path))
        assert not metadata.differences(read, schema.load(HERE / "v1" / "config.json").data)
    else:
        with pytest.raises(
            UserError, match="newer deberta_jax" if change == "newer" else "damaged"
        ):
            metadata.read_metadata(str(tmp_path))
