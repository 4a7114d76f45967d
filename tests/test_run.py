"""Whole runs through the real commands: prepare, train, evaluate, export; killed and resumed."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax import objectives, schema
from deberta_jax.data.packed_text import VALIDATION
from deberta_jax.errors import UserError
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.parallel.mesh import MeshConfig, make_mesh
from deberta_jax.runs import pretraining
from deberta_jax.runs.opening import open_run
from deberta_jax.runs.pretraining import make_step_units
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.optimizer import make_optimizer, make_schedule
from deberta_jax.training.state import abstract_state
from tests.devices import EIGHT, UNOPTIMISED
from tests.tiny_recipe import get_config

ROOT = Path(__file__).parents[1]
RECIPE = "--config=tests/tiny_recipe.py"
STEPS = 24


def start(verb, *arguments, **environment):
    """A command on one CPU device, whatever this process has."""
    environment = {"XLA_FLAGS": UNOPTIMISED, "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.Popen(
        [sys.executable, "-m", f"deberta_jax.{verb}", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """(exit status, output, errors)."""
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def command(verb, *arguments, **environment):
    status, output, errors = finish(start(verb, *arguments, **environment))
    assert status == 0, errors
    return output


def error_of(verb, *arguments, **environment):
    """The one line of a user's mistake."""
    status, _, errors = finish(start(verb, *arguments, **environment))
    assert status == 2, errors
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    return line


def compiled_once(data):
    """Environment in which processes share what they have compiled: the first one's is kept."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(data.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def configured(directory, **sections):
    """The tiny config on prepared data, with changes: `configured(data, model=dict(...))`."""
    config = get_config()
    config.data.dir = str(directory)
    for name, values in sections.items():
        config[name].update(values)
    return schema.freeze(config)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny") / "data"
    workdir = tmp_path_factory.mktemp("unused")
    command("prepare", RECIPE, f"--workdir={workdir}", f"--config.data.dir={directory}")
    assert not list(workdir.iterdir())
    return directory


@pytest.fixture(scope="session")
def whole(data, tmp_path_factory):
    """A run that nothing interrupted: (workdir, what it printed)."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    arguments = RECIPE, f"--workdir={workdir}", f"--config.data.dir={data}"
    traced = "--config.profile.steps=3:5"
    return workdir, command("train", *arguments, traced, **compiled_once(data))


def test_a_run_says_where_its_time_went(whole):
    lines = [line for line in metrics(whole[0]) if "perf/step_seconds" in line]
    assert len(lines) > STEPS / 2
    for line in lines:
        assert 0 <= line["perf/input_seconds"] < line["perf/step_seconds"]
        assert line["perf/step_seconds"] == pytest.approx(1 / line["perf/steps_per_second"])
    # Compilation comes first, so the share of productive time begins near 0.
    assert 0 <= lines[0]["perf/goodput"] < lines[-1]["perf/goodput"] < 1
    # A checkpoint every third step, an evaluation every tenth, told after the step that follows.
    saved = {line["step"] for line in lines if line["perf/checkpoint_seconds"] > 0}
    measured = {line["step"] for line in lines if line["perf/eval_seconds"] > 0}
    assert saved == set(range(4, STEPS, 3)) and measured == {11, 21}


def test_chosen_steps_are_traced(whole):
    workdir, output = whole
    assert f"trace written: tensorboard --logdir={workdir}/profile" in output
    (trace,) = (workdir / "profile").rglob("*.xplane.pb")
    assert b"train" in trace.read_bytes()


@pytest.fixture(scope="session")
def run(whole):
    return open_run(whole[0])


@pytest.fixture(scope="session")
def export(whole, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "whole"
    assert f"step {STEPS} exported to {out}" in command(
        "export", f"--workdir={whole[0]}", f"--out={out}"
    )
    return out


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_each_step_once(workdir):
    """Every training step once, every evaluation once."""
    lines = metrics(workdir)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "eval/loss" in line] == [10, 20, STEPS]


def final_state(workdir):
    """Everything that the last checkpoint holds of the training state, on this machine."""
    run = open_run(workdir)
    optimizer = make_optimizer(
        run.config.optimizer,
        make_schedule(run.config.optimizer, make_step_units(run.config, run.prepared)),
    )
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    abstract, _ = abstract_state(run.objective, optimizer, mesh)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(abstract)


def test_a_run_leaves_its_metrics(whole):
    workdir, output = whole
    assert_each_step_once(workdir)
    names = {name for line in metrics(workdir) for name in line}
    assert {
        "step",
        "train/loss",
        "train/mlm_accuracy",
        "eval/loss",
        "eval/unigram_loss",
        "eval/mlm_accuracy",
        "perf/tokens_per_second",
        "optim/grad_norm",
        "optim/learning_rate",
        "norms/weight/embeddings/word_embeddings",
        "norms/gradient/encoder/layers/0",
        "norms/update/encoder/last_layer",
    } <= names
    losses = [line["train/loss"] for line in metrics(workdir) if "train/loss" in line]
    assert losses[0] == pytest.approx(np.log(520), abs=0.3)
    assert np.mean(losses[-4:]) < losses[0] - 0.2, losses
    assert f"step {STEPS}/{STEPS} 100.0%" in output
    assert re.search(rf"held out at step {STEPS}: .*\bloss \d", output)


def test_a_run_leaves_pictures_and_its_config(whole, data):
    workdir, _ = whole
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert all(p.stat().st_size > 500 for p in (workdir / "tensorboard").glob("events.out.*"))
    assert list((workdir / "tensorboard").glob("events.out.*"))
    assert schema.load(workdir / "config.json") == configured(data, profile=dict(steps="3:5"))


def test_what_will_run_is_told_before_it_runs(whole):
    _, output = whole
    before = output[: output.index("step  1/24")]
    assert "devices: 1 x cpu in 1 process(es); mesh: data 1 x fsdp 1 x tensor 1" in before
    assert "embeddings/word_embeddings/embedding" in before and "520 x 32" in before
    assert "sharding rules:" in before and "24 steps of 8 sequences" in before


def test_evaluation_gives_the_run_s_own_last_metrics(whole, data):
    workdir, _ = whole
    output = command("evaluate", f"--workdir={workdir}", "--examples=3", **compiled_once(data))
    assert f"step {STEPS}, on held-out documents" in output
    last = [line for line in metrics(workdir) if "eval/loss" in line][-1]
    for name in ("eval/loss", "eval/mlm_accuracy", "eval/unigram_loss"):
        assert re.search(rf"{name}\s+{last[name]:.4f}\n", output), output
    assert output.count("[MASK]") == output.count("guesses:") == 3


def held_out_text(run, count=5):
    """Decoded pieces of held-out documents, of different lengths."""
    source, tokenizer = run.prepared.source(VALIDATION), run.prepared.tokenizer
    rows = [source[index]["input_ids"][1:-1] for index in range(count)]
    return [tokenizer.decode(row[: 4 + 5 * i]) for i, row in enumerate(rows)]


def test_transformers_loads_an_export_whole(run, export):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    texts = held_out_text(run)
    for text in texts:
        ours = run.prepared.tokenizer
        want = [ours.cls_id, *ours.encode(text), ours.sep_id]
        assert tokenizer(text)["input_ids"] == want, text

    _, info = transformers.AutoModelForMaskedLM.from_pretrained(export, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    theirs, info = transformers.AutoModel.from_pretrained(export, output_loading_info=True)
    assert not info["missing_keys"], info

    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = inputs["input_ids"].numpy(), inputs["attention_mask"].numpy()
    assert 0 < mask.mean() < 1
    with torch.no_grad():
        want = theirs(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state.numpy()
    model = DebertaForMaskedLM(run.config.model)
    encode = jax.jit(lambda *x: model.apply(*x, method=DebertaForMaskedLM.encode))
    ours = np.asarray(encode({"params": run.params}, ids.astype(np.int32), mask.astype(np.int32)))
    np.testing.assert_allclose(ours[mask > 0], want[mask > 0], atol=1e-5)


def test_a_finished_run_stays_as_it_is(whole, data, capsys):
    workdir, _ = whole

    def contents():
        return {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}

    before = contents()
    result = pretraining.pretrain(configured(data, profile=dict(steps="3:5")), workdir)
    assert f"{workdir} is complete: all its {STEPS} steps are done" in capsys.readouterr().out
    assert contents() == before
    last = [line for line in metrics(workdir) if "eval/loss" in line][-1]
    assert result == {name: last[name] for name in last if name.startswith("eval/")}


@pytest.fixture(scope="session")
def interrupted(whole, data, tmp_path_factory):
    """A run killed at random steps and told to stop at another: (workdir, last output, stop's)."""
    workdir = tmp_path_factory.mktemp("runs") / "interrupted"
    arguments = "train", RECIPE, f"--workdir={workdir}", f"--config.data.dir={data}"
    places = sorted(random.sample(range(1, STEPS - 4), 3))
    print("interrupted at steps", places)
    stopped = None
    for place, kind in zip(places, (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL), strict=True):
        process, seen = start(*arguments, **compiled_once(data)), 0
        for line in process.stdout:
            found = re.match(r"step +(\d+)/", line)
            seen = int(found[1]) if found else seen
            if seen >= place:
                process.send_signal(kind)
                break
        status, output, errors = finish(process)
        if kind == signal.SIGTERM:
            stopped = status, output, errors
        else:
            assert status == -signal.SIGKILL, errors
    return workdir, command(*arguments, **compiled_once(data)), stopped


def test_told_to_stop_a_run_saves_and_says_so(interrupted):
    status, output, errors = interrupted[2]
    assert status == 143, errors
    (step,) = re.findall(r"stopped after step (\d+); the same command goes on from there", output)
    assert 0 < int(step) < STEPS


def test_an_interrupted_run_ends_as_if_nothing_had_happened(whole, interrupted):
    ours, want = final_state(interrupted[0]), final_state(whole[0])
    position = {"next_step": STEPS, "next_sample": 8 * STEPS, "batch_size": 8, "seed": 0}
    assert ours.input == want.input == position
    for (path, x), y in zip(
        jax.tree.leaves_with_path(ours.state), jax.tree.leaves(want.state), strict=True
    ):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
    assert f"of {STEPS} in {interrupted[0]}" in interrupted[1]  # going on after step ...


def test_an_interrupted_run_has_every_metric_once_and_the_same(whole, interrupted):
    assert_each_step_once(interrupted[0])

    def untimed(workdir):
        lines = metrics(workdir)
        return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]

    assert untimed(interrupted[0]) == untimed(whole[0])


def test_a_workdir_of_another_model_is_refused_field_by_field(whole, data):
    workdir, before = whole[0], (whole[0] / "config.json").read_bytes()
    other = configured(data, model=dict(hidden_size=64, num_hidden_layers=3))
    with pytest.raises(UserError) as caught:
        pretraining.pretrain(other, workdir)
    assert "model.hidden_size: 32 -> 64" in str(caught.value)
    assert "model.num_hidden_layers: 2 -> 3" in str(caught.value)
    assert (workdir / "config.json").read_bytes() == before
    assert open_run(workdir).step == STEPS


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (dict(model=dict(vocab_size=512)), r"model\.vocab_size is 512, but .* have 513 tokens"),
        (dict(model=dict(vocab_size=5000)), r"model\.vocab_size is 5000.*it must be 513 to"),
        (dict(data=dict(sequence_length=64)), r"data\.sequence_length is 64.*prepared with 32"),
        (
            dict(model=dict(max_position_embeddings=16)),
            r"data\.sequence_length 32 is more than model\.max_position_embeddings 16",
        ),
        (dict(train=dict(duration="soon")), r"train\.duration is 'soon'"),
        (dict(train=dict(batch_size=9, microbatches=2)), r"train\.batch_size 9 does not divide"),
        (dict(optimizer=dict(schedule="step")), r"optimizer\.schedule is 'step'"),
        (dict(optimizer=dict(warmup="25 steps")), r"optimizer\.warmup '25 steps'"),
        (dict(mesh=dict(fsdp=64)), r"mesh\.fsdp=64.*does not fit"),
        (dict(masking=dict(rate=1.5)), r"rate"),
        (dict(profile=dict(steps="5")), r"profile\.steps is '5'.*FIRST:LAST"),
    ],
)
def test_a_config_that_cannot_run_is_refused_before_anything_is_lost(
    sections, message, data, tmp_path
):
    with pytest.raises(UserError, match=message):
        pretraining.pretrain(configured(data, **sections), tmp_path)
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())
    # Mended, it would run in the same workdir.
    pretraining.claim_workdir(configured(data), tmp_path)


def test_an_unknown_objective_is_refused(data, tmp_path):
    config = dataclasses.replace(configured(data), objective="nsp")
    with pytest.raises(UserError, match="objective is 'nsp'"):
        objectives.make(config, None)


def test_a_batch_that_does_not_divide_over_the_devices_is_one_line(data, tmp_path):
    line = error_of(
        "train",
        RECIPE,
        f"--workdir={tmp_path}",
        f"--config.data.dir={data}",
        "--config.train.batch_size=12",
        **EIGHT,
    )
    assert "train.batch_size 12 does not divide over mesh.data x mesh.fsdp = 8" in line


def test_what_is_missing_is_one_line(tmp_path):
    nowhere = f"--workdir={tmp_path}/nowhere"
    asked = [
        (("train", RECIPE, nowhere), "no prepared data in"),
        (("train", RECIPE), "--workdir is missing"),
        (("prepare", nowhere), "--config is missing"),
        (("prepare", RECIPE, nowhere, "--config.data.corpus=/no/such/*.txt"), "/no/such/*.txt"),
        (("export", nowhere), "--out is missing"),
    ]
    for arguments, part in asked:
        assert part in error_of(*arguments), arguments
    assert not (tmp_path / "nowhere" / "config.json").exists()


def test_a_run_without_a_checkpoint_has_nothing_to_read(data, tmp_path):
    with pytest.raises(UserError, match=r"holds no run: .*config\.json is missing"):
        open_run(tmp_path)
    pretraining.claim_workdir(configured(data), tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint"):
        open_run(tmp_path)


def test_a_run_is_loaded_like_its_export(whole, run, export):
    for path in (whole[0], export):
        model, params = deberta_jax.load_pretrained(path, "masked_lm")
        assert type(model) is DebertaForMaskedLM and model.config.decodes_with_emd
        jax.tree.map(np.testing.assert_array_equal, params, run.params)


def test_pre_training_goes_on_from_a_checkpoint(data, whole, export, tmp_path):
    """The first step from an export is far ahead of a new run's first step."""
    options = (
        f"--config.data.dir={data}",
        "--config.train.duration=1",
        "--config.optimizer.warmup=0",
    )
    command("train", RECIPE, f"--workdir={tmp_path}", f"--config.train.init={export}", *options)
    assert metrics(tmp_path)[0]["train/loss"] < metrics(whole[0])[0]["train/loss"] - 0.1


def test_a_checkpoint_of_another_model_lists_what_differs(data, export):
    config = configured(data, train={"init": str(export)}, model={"num_hidden_layers": 3})
    with pytest.raises(UserError, match="num_hidden_layers: 2 there, 3 here"):
        pretraining.initial_params(config, objectives.make(config))


@pytest.fixture(scope="session")
def both(data, tmp_path_factory):
    """A short run of masked and auto-regressive modelling, which nothing interrupted."""
    train_section = dict(duration="6 steps", checkpoint_every="3 steps", eval_every="0")
    sections = dict(train=train_section, model=dict(num_hidden_layers=1))
    config = dataclasses.replace(configured(data, **sections), objective="mlm_clm")
    workdir = tmp_path_factory.mktemp("runs") / "both"
    pretraining.pretrain(config, workdir)
    return config, workdir


def test_a_run_of_both_objectives_resumes_bit_for_bit(both, tmp_path):
    config, workdir = both
    resumed = shutil.copytree(workdir, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / "6")
    pretraining.pretrain(config, resumed)
    ours, want = (final_state(path).state for path in (resumed, workdir))
    jax.tree.map(np.testing.assert_array_equal, ours, want)
    last, again = (metrics(path)[-1] for path in (workdir, resumed))
    assert last["eval/perplexity"] == pytest.approx(np.exp(last["eval/clm_loss"]), rel=1e-5)
    assert again["eval/perplexity"] == last["eval/perplexity"]


def test_evaluation_shows_both_kinds_of_guesses(both):
    _, workdir = both
    output = command("evaluate", f"--workdir={workdir}", "--examples=2")
    assert re.search(rf"eval/perplexity +{metrics(workdir)[-1]['eval/perplexity']:.4f}\n", output)
    assert output.count("guesses:") == output.count("likeliest:") == output.count("drawn:") == 2


def test_another_batch_size_goes_on_at_the_next_sample(both, tmp_path, monkeypatch):
    config, workdir = both
    resumed = tmp_path / "resumed"
    shutil.copytree(workdir, resumed)
    starts, real = [], pretraining.train_batches

    def watched(*args, **options):
        starts.append((options["start_sample"], options["batch_size"]))
        return real(*args, **options)

    monkeypatch.setattr(pretraining, "train_batches", watched)
    section = dataclasses.replace(config.train, duration="8 steps", batch_size=16)
    pretraining.pretrain(dataclasses.replace(config, train=section), resumed)
    assert starts == [(6 * 8, 16)]
    with Checkpoints(resumed, read_only=True) as checkpoints:
        position = checkpoints.position()
    assert position == {"next_step": 8, "next_sample": 6 * 8 + 2 * 16, "batch_size": 16, "seed": 0}


def test_another_seed_is_refused_by_name(both):
    config, workdir = both
    longer = dataclasses.replace(config.train, duration="8 steps")
    with pytest.raises(UserError, match=r"seed is 1, but .* was started with seed 0"):
        pretraining.pretrain(dataclasses.replace(config, seed=1, train=longer), workdir)


def test_another_computation_goes_on_where_it_stood(both, tmp_path, capsys):
    config, workdir = both
    resumed = tmp_path / "resumed"
    shutil.copytree(workdir, resumed)
    longer = dataclasses.replace(config.train, duration="7 steps")
    compute = dataclasses.replace(config.compute, remat="full", attention="xla")
    pretraining.pretrain(dataclasses.replace(config, train=longer, compute=compute), resumed)
    assert "compute.remat: 'none' -> 'full'" in capsys.readouterr().out
    assert metrics(resumed)[-1]["step"] == 7


def test_a_causal_run_is_a_causal_checkpoint(data, tmp_path):
    model = dict(num_hidden_layers=1, causal=True)
    causal = configured(data, train=dict(duration="1 step"), model=model)
    config = dataclasses.replace(causal, objective="clm")
    held_out = pretraining.pretrain(config, tmp_path)
    assert held_out["eval/perplexity"] == pytest.approx(np.exp(held_out["eval/loss"]), rel=1e-5)
    model, _ = deberta_jax.load_pretrained(tmp_path, "masked_lm")
    assert model.config == config.model
    with pytest.raises(UserError, match=r"model\.causal is True; objective 'mlm'"):
        pretraining.pretrain(causal, tmp_path / "other")
