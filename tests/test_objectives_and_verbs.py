"""Every objective there is, and one from outside, held to the whole protocol and to every verb."""

import dataclasses
import functools
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import deberta_jax
from deberta_jax import objectives, schema
from deberta_jax.data import dataset
from deberta_jax.data.masking import derive_seed
from deberta_jax.data.packed_text import TRAIN
from deberta_jax.errors import UserError
from deberta_jax.evaluation.sentence_files import Item
from deberta_jax.model.task_heads import task_of
from deberta_jax.objectives import Objective
from deberta_jax.runs.evaluating import held_out_examples, held_out_metrics
from deberta_jax.runs.opening import open_run
from deberta_jax.runs.pretraining import claim_workdir, initial_params
from deberta_jax.runs.scoring import score
from deberta_jax.training.metrics import read_metrics
from tests.devices import UNOPTIMISED
from tests.tpu_compiler import compile_for_pod, compiled_for_tpu

ROOT = Path(__file__).parents[1]
TOY = Path(__file__).parent / "toy_objective"
RECIPE = "--config=tests/formats/recipe.py"
TEXT = ("mlm", "clm", "mlm_clm", "rtd", "copy")
TASKS = (
    "classification",
    "regression",
    "multi_label",
    "multiple_choice",
    "span",
    "token_classification",
)
LENGTH, BATCH = 32, 8


@pytest.fixture(scope="module", autouse=True)
def toy_installed():
    """The toy's folder on the path is what an installed package is: it has its metadata there."""
    sys.path.insert(0, str(TOY))
    objectives._installed.cache_clear()
    yield
    sys.path.remove(str(TOY))
    objectives._installed.cache_clear()


def options(objective):
    """What the recipe changes for it."""
    return {"objective": objective, "model.causal": objective == "clm"}


def command(verb, *arguments):
    environment = {"XLA_FLAGS": UNOPTIMISED, "PYTHONPATH": f"{TOY}:{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-m", f"deberta_jax.{verb}", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The corpus of the first schema's run."""
    return ROOT / "tests" / "formats" / "v1" / "data"


def config_for(objective, data=None, changes=None, **train):
    from tests.formats.recipe import get_config

    config = get_config()
    config.update_from_flattened_dict(options(objective) | (changes or {}))
    config.data.dir = str(data or "")
    config.train.update(dict(duration="2 steps", eval_batches=1) | train)
    if objective in TASKS:
        config.task.labels = ("a", "b")
    return schema.freeze(config)


def test_the_matrix_has_every_objective():
    assert sorted(objectives.names()) == sorted((*TEXT, *TASKS))


@pytest.mark.parametrize("name", (*TEXT, *TASKS))
def test_an_objective_has_the_whole_protocol(name):
    """A batch of its shapes goes through everything that the loop asks of it."""
    objective = objectives.make(config_for(name))
    assert isinstance(objective, Objective) and not inspect.isabstract(type(objective))
    shapes = objective.batch_shapes(LENGTH, BATCH)
    assert all(shape.shape[0] == BATCH for shape in shapes.values())
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    params = nn.unbox(boxed)

    def everything(params, batch, rng):
        weights = objective.weights(batch)
        results = [objective.loss(params, batch, weights, rng, train) for train in (True, False)]
        return [objective.summarize(sums, weights) for _, sums in results]

    for metrics in jax.eval_shape(everything, params, shapes, jax.random.key(0)):
        assert metrics["loss"].shape == ()
    assert objective.flops_per_token(LENGTH) > 0
    for tree in (objective.depths(params), objective.parameter_groups(params)):
        assert jax.tree.structure(tree) == jax.tree.structure(params)
    assert set(objective.exported) <= set(objective.models)
    for model in objective.exported:
        own = jax.eval_shape(functools.partial(objective.params_of, name=model), params)
        assert jax.tree.leaves(own)
        assert objective.models[model].deterministic


@pytest.mark.parametrize("name", TEXT)
def test_its_batches_have_its_shapes_and_depend_on_their_arguments_alone(name, data):
    objective = objectives.make(config_for(name))
    prepared = dataset.load(data)
    rows = prepared.source(TRAIN).__getitems__(list(range(BATCH)))
    text = {key: np.stack([row[key] for row in rows]).astype(np.int32) for key in rows[0]}
    text["position_ids"] = np.zeros_like(text["input_ids"])
    make = objective.batch_maker(prepared.tokenizer, derive_seed(1, "masks"))
    batch, again = make(text, 3, 0), make(text, 3, 0)
    shapes = objective.batch_shapes(prepared.metadata.sequence_length, BATCH)
    assert {key: (x.shape, x.dtype) for key, x in batch.items()} == {
        key: (shape.shape, shape.dtype) for key, shape in shapes.items()
    }
    for key, value in batch.items():
        np.testing.assert_array_equal(value, again[key])


@pytest.fixture(scope="module", params=TEXT)
def run(request, data, tmp_path_factory):
    """A run of two steps: (objective, workdir)."""
    name, workdir = request.param, tmp_path_factory.mktemp("runs") / request.param
    config = config_for(name, data, checkpoint_every="1 step", keep_checkpoints=2)
    deberta_jax.train(config, workdir)
    return name, workdir


def test_every_verb_takes_its_run(run, tmp_path, capsys):
    """evaluate, export, convert and score, and the export is the run, model by model."""
    name, workdir = run
    scored = deberta_jax.evaluate(workdir)
    last = [line for line in read_metrics(workdir) if "eval/loss" in line][-1]
    assert scored["eval/loss"] == pytest.approx(last["eval/loss"], rel=1e-6)
    opened = open_run(workdir)
    shown = held_out_examples(opened, 1)
    assert all(isinstance(line, str) and line for line in shown) and bool(shown) == (name != "copy")
    deberta_jax.export(workdir, tmp_path / "export")
    deberta_jax.convert(workdir, tmp_path / "microsoft", layout="microsoft")
    deberta_jax.convert(workdir, tmp_path / "orbax", layout="orbax")
    items = [Item("test", 1, "", ("The old river found the road.",))]
    scores = [score(path, items)[0][0].scores[0] for path in (workdir, tmp_path / "export")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5) and scores[0] < 0
    ids = np.arange(5, 13, dtype=np.int32)[None]
    first, *others = opened.objective.exported
    for model_name in (first, *others):
        own = opened.objective.models[model_name]
        params = opened.objective.params_of(opened.params, model_name)
        want = own.apply({"params": params}, ids)
        for directory in ("export", "microsoft", "orbax"):
            folder = tmp_path / directory / ("" if model_name == first else model_name)
            if name == "rtd" and directory == "microsoft" and model_name != first:
                continue  # both lie in one folder, as published: tests/interop/test_rtd_export.py
            model, params = deberta_jax.load_pretrained(folder, task_of(own))
            model = model.clone(config=dataclasses.replace(model.config, causal=name == "clm"))
            np.testing.assert_allclose(model.apply({"params": params}, ids), want, atol=1e-5)


def test_resumed_it_ends_as_if_uninterrupted(run, data, tmp_path):
    """From its first step's checkpoint on: parameters and optimizer states, bit for bit."""
    name, workdir = run
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "2")
    deberta_jax.train(config_for(name, data, checkpoint_every="1 step", keep_checkpoints=2), again)
    states = []
    for directory in (workdir, again):
        with ocp.PyTreeCheckpointer() as checkpointer:
            states.append(checkpointer.restore(directory.resolve() / "checkpoints/2/state"))
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert int(states[0]["step"]) == 2


def test_a_run_begins_with_another_and_loses_nothing(run, data, tmp_path):
    """Continued from a run, and from its export: step 0 is where the other run ended."""
    name, workdir = run
    last = [line for line in read_metrics(workdir) if "eval/loss" in line][-1]
    deberta_jax.export(workdir, tmp_path / "export")
    for source in (workdir, tmp_path / "export"):
        config = config_for(name, data, init=str(source))
        objective = objectives.make(config)
        begun = initial_params(config, objective)
        opened = open_run(workdir)
        loss = held_out_metrics(dataclasses.replace(opened, params=jax.device_put(begun)))
        assert loss["eval/loss"] == pytest.approx(last["eval/loss"], rel=1e-5), source
        if name == "rtd":
            # Released code begins with a table of zeros beside the generator's: another model.
            begun["delta"] = jax.tree.map(np.zeros_like, begun["delta"])
            other = held_out_metrics(dataclasses.replace(opened, params=jax.device_put(begun)))
            assert other["eval/mlm_loss"] == pytest.approx(loss["eval/mlm_loss"], rel=1e-5)
            assert other["eval/rtd_loss"] != pytest.approx(loss["eval/rtd_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("before", "changes", "message"),
    [
        ("rtd", {"rtd.sharing": "es"}, r"rtd\.sharing: 'gdes' -> 'es'"),
        ("rtd", {"rtd.decoupled": False}, r"rtd\.decoupled: True -> False"),
        ("rtd", {"rtd.generator_layers": 2}, r"rtd\.generator_layers: 0 -> 2"),
        ("rtd", {"objective": "mlm"}, r"objective: 'rtd' -> 'mlm'"),
        ("mlm", {"objective": "rtd"}, r"objective: 'mlm' -> 'rtd'"),
    ],
)
def test_a_run_of_other_arrays_is_refused_before_anything_is_written(
    before, changes, message, data, tmp_path
):
    claim_workdir(config_for(before, data), tmp_path)
    text = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match=message):
        claim_workdir(config_for(before, data, changes=changes), tmp_path)
    assert (tmp_path / "config.json").read_text() == text
    claim_workdir(config_for(before, data, batch_size=4), tmp_path)  # which may change


def test_another_tokenizer_is_refused_before_anything_is_written(tmp_path, data):
    """By a run that goes on, and by one that begins with a checkpoint; sizes are equal."""
    config = config_for("mlm", data)
    deberta_jax.train(config, tmp_path / "run")
    deberta_jax.export(tmp_path / "run", tmp_path / "export")
    words = ["SILVER", "MOUNTAIN", "UNDER", "FROZEN", "BRANCHES", "EVERY", "HOLLOW", "LANTERN"]
    rng = np.random.default_rng()
    text = [" ".join(rng.choice(words, 12)) + "." for _ in range(200)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in text))
    changed = {"data.corpus": str(tmp_path / "other.jsonl"), "data.validation_share": 0.3}
    other = config_for("mlm", changes=changed)
    other = dataclasses.replace(
        other, data=dataclasses.replace(other.data, vocab_size=30, dir=str(tmp_path / "data"))
    )
    other = dataclasses.replace(other, model=dataclasses.replace(other.model, vocab_size=64))
    deberta_jax.prepare(other, tmp_path / "made")
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(UserError, match="run was started with another tokenizer"):
        deberta_jax.train(other, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == before
    for source in ("run", "export"):
        train = dataclasses.replace(other.train, init=str(tmp_path / source))
        with pytest.raises(UserError, match=rf"train.init=.*{source} was trained with another"):
            deberta_jax.train(dataclasses.replace(other, train=train), tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_the_verbs_themselves_take_a_run_of_two_models(data, tmp_path):
    """By real commands, each in a process of its own."""
    workdir, sentence = tmp_path / "run", "The old river found the road.\n"
    overrides = [f"--config.{field}={value}" for field, value in options("rtd").items()]
    overrides += [f"--config.data.dir={data}", "--config.train.duration=2 steps"]
    command("train", RECIPE, f"--workdir={workdir}", *overrides)
    output = command("evaluate", f"--workdir={workdir}", "--examples=1")
    assert "rtd_auc" in output and "all_original_accuracy" in output and "became" in output
    command("export", f"--workdir={workdir}", f"--out={tmp_path / 'export'}")
    assert (tmp_path / "export" / "generator" / "model.safetensors").exists()
    (tmp_path / "lines.txt").write_text(sentence)
    arguments = f"--checkpoint={workdir}", f"--input={tmp_path / 'lines.txt'}"
    assert "rtd of 1 sentences" in command("score", *arguments, f"--out={tmp_path / 'scores'}")
    line = json.loads((tmp_path / "scores").read_text())
    assert len(line["replaced"]) == line["tokens"] and 0 < line["replaced"][0][1] < 1


def lowered_for_tpus():
    """Characters of the lowered step of every objective of text, for four chips."""
    from deberta_jax.estimates.cost import tpu_devices
    from deberta_jax.runs.compilation import lower_step, program_for

    sizes, devices = {}, tpu_devices("v5e:2x2")
    for name in TEXT[:-1]:
        config = config_for(name, batch_size=16)
        objective = objectives.make(config)
        program = program_for(config, devices, objective)
        sizes[name] = len(lower_step(config, program, objective).as_text())
    return sizes


def test_each_is_lowered_for_a_pod():
    assert min(compiled_for_tpu(lowered_for_tpus).values()) > 10_000


def test_one_from_outside_is_compiled_for_a_pod(tmp_path, monkeypatch):
    """The step that `train` would run, by the TPU compiler."""
    monkeypatch.setenv("PYTHONPATH", f"{TOY}:{ROOT}")
    arguments = RECIPE, "--config.objective=copy", "--topology=v5e:2x2", "--quick"
    out = tmp_path / "report.json"
    status, report, _, errors = compile_for_pod(out, *arguments, "--config.train.batch_size=16")
    assert status == 0 and report["fits"] and report["collectives"], errors


def test_it_goes_on_without_its_corpus(run, data, tmp_path):
    """The tokenizer came along: export, score and fine-tuning need no prepared data."""
    _, workdir = run
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["dir"] = str(tmp_path / "gone")
    moved = tmp_path / "moved"
    subprocess.run(["cp", "-r", workdir, moved], check=True)
    (moved / "config.json").write_text(json.dumps(config))
    deberta_jax.export(moved, tmp_path / "export")
    assert deberta_jax.load_tokenizer(tmp_path / "export").encode("the river").size
    with pytest.raises(UserError, match=r"no prepared data in .*gone"):
        deberta_jax.evaluate(moved)


def test_an_objective_that_is_none_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"objective is 'rtdd'; it must be one of 'mlm'.*'copy'"):
        objectives.make(dataclasses.replace(config_for("mlm"), objective="rtdd"))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_no_objective_of_pre_training(name, data, tmp_path):
    with pytest.raises(UserError, match=f"objective '{name}' learns a task: use the verb finetune"):
        deberta_jax.train(config_for(name, data), tmp_path)
    assert not list(tmp_path.iterdir())
