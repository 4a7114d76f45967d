"""The shapes in the types of the models are checked while every model is traced."""

import subprocess
import sys
from pathlib import Path

import pytest

TRACE = """
from jaxtyping import install_import_hook

rooms = ["deberta_jax.model", "deberta_jax.kernels.attention"]
with install_import_hook(rooms, "beartype.beartype"):
    from deberta_jax.model import attention, encoder, heads, losses, task_heads
import jax, jax.numpy as jnp
from deberta_jax.model.config import ModelConfig

size = dict(vocab_size=40, hidden_size=16, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16, max_relative_positions=16, position_buckets=8)
for layers, options in ((2, {}), (3, dict(conv_kernel_size=3)), (2, dict(pos_att_type=()))):
    config = ModelConfig(num_hidden_layers=layers, **size, **options)
    for task, kind in task_heads.TASK_MODELS.items():
        shape = (3, 2, 8) if task == "multiple_choice" else (3, 8)
        ids = jax.ShapeDtypeStruct(shape, jnp.int32)
        model = kind(config)
        params = jax.eval_shape(model.init, jax.random.key(0), ids)
        print(task, jax.eval_shape(model.apply, params, ids, ids, ids).shape)
WRONG
"""


def trace(wrong=""):
    return subprocess.run(
        [sys.executable, "-c", TRACE.replace("WRONG", wrong)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_model_has_the_shapes_of_its_types():
    pytest.importorskip("beartype")
    result = trace()
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("masked_lm (3, 8, 40)") == 3


def test_another_shape_is_noticed():
    pytest.importorskip("beartype")
    result = trace(
        "jax.eval_shape(model.apply, params, ids, jax.ShapeDtypeStruct((3, 7), jnp.int32))"
    )
    assert result.returncode != 0
    assert "attention_mask_B" in result.stderr
