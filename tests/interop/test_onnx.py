"""ONNX files, run by onnxruntime: our own logits, for every architecture and every head."""

import jax
import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.interop import pretrained
from deberta_jax.model.task_heads import TASK_MODELS
from tests.model import small
from tests.model.small import VARIANTS

onnxruntime = pytest.importorskip("onnxruntime", reason="the finetune extra is not installed")
from deberta_jax.interop.onnx_graph import write_onnx  # noqa: E402


def random_params(model, seed, task):
    rng = np.random.default_rng(seed)
    shapes = pretrained._shapes(model)

    def noise(path, leaf):
        return rng.normal(float(path[-1].key == "scale"), 0.1, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(noise, shapes)


def compare(config, task, seed, tmp_path, lengths=(9, 40)):
    model = TASK_MODELS[task](config)
    params = random_params(model, seed, task)
    path = tmp_path / "model.onnx"
    write_onnx(path, config, task, pretrained.to_state_dict(model, params), max_length=48)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ours = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))
    rng = np.random.default_rng(seed)
    for rows, length in zip((3, 2), lengths, strict=True):
        shape = (rows, 2, length) if task == "multiple_choice" else (rows, length)
        ids = rng.integers(4, config.vocab_size, shape).astype(np.int32)
        mask = np.ones_like(ids)
        mask[-1, ..., rng.integers(2, length) :] = 0
        inputs = {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}
        (got,) = session.run(None, inputs)
        want = np.asarray(ours(ids, mask))
        assert got.shape == want.shape
        real = mask.astype(bool) if got.ndim == 3 else ...
        np.testing.assert_allclose(got[real], want[real], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_architecture_s_classifier(options, seed, tmp_path):
    compare(small.variant(**options), "sequence_classification", seed, tmp_path)


@pytest.mark.parametrize(
    "task", [None, "token_classification", "question_answering", "multiple_choice"], ids=str
)
def test_every_head(task, seed, tmp_path):
    compare(small.variant(num_hidden_layers=2), task, seed, tmp_path)


def test_a_head_that_there_is_not_is_named(tmp_path):
    with pytest.raises(UserError, match="no head of masked_lm; it has None, sequence_class"):
        write_onnx(tmp_path / "m.onnx", small.SMALL, "masked_lm", {}, 8)
