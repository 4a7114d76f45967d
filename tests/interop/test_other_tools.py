"""An export in the hands of transformers, accelerate, sentence-transformers and onnxruntime."""

import dataclasses

import numpy as np
import pytest

from deberta_jax.data.tokenizer import Tokenizer, train_tokenizer, write_pretrained
from deberta_jax.interop import pretrained
from deberta_jax.interop.onnx_graph import write_onnx
from deberta_jax.model.task_heads import TASK_MODELS
from tests.interop.released import torch, transformers
from tests.interop.test_onnx import random_params
from tests.model import small

onnxruntime = pytest.importorskip("onnxruntime", reason="the finetune extra is not installed")

TEXTS = ["the cat sat on the mat and the dog ran off", "all the world is a stage", "to be or not"]
LABELS = ("no", "maybe", "yes")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "spm.model"
    train_tokenizer(TEXTS * 20, 29, path)
    return Tokenizer(path)


def exported(tokenizer, directory, task, head_names="cls.predictions", **options):
    """A small model of a task with random weights, as the verb export writes it."""
    config = dataclasses.replace(
        small.SMALL, vocab_size=tokenizer.vocab_size, num_hidden_layers=1, **options
    )
    labels = {"num_labels": len(LABELS)} if task == "sequence_classification" else {}
    model = TASK_MODELS[task](config, **labels)
    tensors = pretrained.to_state_dict(model, random_params(model, 3, task))
    kinds = {"label_names": LABELS, "problem_type": "single_label_classification"}
    pretrained.write(directory, model, tensors, head_names=head_names, **(kinds if labels else {}))
    write_pretrained(tokenizer, directory, model_max_length=64)
    return config, tensors


@pytest.fixture(scope="module")
def classifier(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("classifier")
    config, tensors = exported(tokenizer, directory, "sequence_classification")
    write_onnx(directory / "model.onnx", config, "sequence_classification", tensors, 64)
    return directory


def their_logits(directory):
    """Of `TEXTS`, by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
    with torch.no_grad():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()


def test_a_graph_takes_all_that_its_tokenizer_makes(classifier):
    inputs = transformers.AutoTokenizer.from_pretrained(classifier)(
        TEXTS, padding=True, return_tensors="np"
    )
    assert "token_type_ids" in inputs
    session = onnxruntime.InferenceSession(classifier / "model.onnx")
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask"]
    (want,) = session.run(None, {k: inputs[k] for k in ("input_ids", "attention_mask")})
    (got,) = session.run(None, dict(inputs))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(got, their_logits(classifier), atol=2e-5)


def test_the_pipeline_names_the_classes(classifier):
    scores = transformers.pipeline("text-classification", str(classifier), top_k=None)(TEXTS[:1])[0]
    assert {score["label"] for score in scores} == set(LABELS)
    logits = their_logits(classifier)[0]
    want = np.exp(logits) / np.exp(logits).sum()
    assert scores[0]["score"] == pytest.approx(want.max(), abs=1e-4)
    assert scores[0]["label"] == LABELS[want.argmax()]


def test_the_pipeline_fills_masks(tokenizer, tmp_path):
    exported(tokenizer, tmp_path, "masked_lm", enhanced_mask_decoder=False)
    guesses = transformers.pipeline("fill-mask", str(tmp_path))("all the [MASK] is a stage")
    assert len(guesses) == 5 and all(0 <= g["token"] < tokenizer.vocab_size for g in guesses)


def test_resized_embeddings_are_trained_and_saved(tokenizer, tmp_path):
    """What `legacy=False` breaks in transformers: its resizing takes another layer for the head."""
    exported(tokenizer, tmp_path, "masked_lm")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    theirs.add_tokens([f"<E{number}>" for number in range(7)])
    model.resize_token_embeddings(len(theirs))
    inputs = theirs("the <E1> sat on [MASK] mat", return_tensors="pt")
    output = model(**inputs, labels=inputs.input_ids)
    assert output.logits.shape[-1] == len(theirs)
    output.loss.backward()
    model.save_pretrained(tmp_path / "more")
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "more")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model.eval()(**inputs).logits)


def test_the_trainer_trains(classifier, tmp_path):
    pytest.importorskip("accelerate", reason="the parity extra is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        classifier, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    rows = [{**tokenizer(text), "labels": i} for i, text in enumerate(TEXTS)]
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=3, learning_rate=1e-3,
        report_to=[], save_strategy="no", use_cpu=True, logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, settings, train_dataset=rows, processing_class=tokenizer,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and losses[-1] < losses[0]


def test_a_cross_encoder_scores_pairs(classifier):
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="the parity extra is not installed"
    )
    encoder = sentence_transformers.CrossEncoder(str(classifier), device="cpu")
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[0])]
    scores = encoder.predict(pairs)
    assert scores.shape == (2, len(LABELS)) and np.isfinite(scores).all()
    session = onnxruntime.InferenceSession(classifier / "model.onnx")
    theirs = transformers.AutoTokenizer.from_pretrained(classifier)
    (want,) = session.run(
        None, dict(theirs(*zip(*pairs, strict=True), padding=True, return_tensors="np"))
    )
    np.testing.assert_allclose(scores, want, atol=1e-4)
