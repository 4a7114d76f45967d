"""A small model with noise in every parameter, and packed batches, for tests."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.heads import DebertaForMaskedLM

SMALL = ModelConfig(
    vocab_size=120,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=160,
    max_relative_positions=128,
    position_buckets=16,
)
V1 = dict(
    model_type="deberta",
    share_att_key=False,
    position_buckets=0,
    norm_rel_ebd="none",
    max_relative_positions=160,
)
# Every way that the released models, and the paper's ablations, differ.
VARIANTS = {
    "v3": {},
    "v2 with convolution": dict(conv_kernel_size=3),
    "v2 own position projections": dict(share_att_key=False),
    "v2 c2p only": dict(pos_att_type=("c2p",)),
    "v2 p2c only": dict(pos_att_type=("p2c",)),
    "v1": V1,
    "absolute positions only": dict(pos_att_type=(), position_biased_input=True),
    "one layer": dict(num_hidden_layers=1),
}


def variant(**options) -> ModelConfig:
    return dataclasses.replace(SMALL, **options)


def random_params(config: ModelConfig, seed: int):
    """Parameters with noise everywhere, so that no bias or norm is trivial."""
    ids = jnp.ones((1, 8), jnp.int32)
    model = DebertaForMaskedLM(config)
    # Shapes alone: to run the initializers one by one takes seconds.
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, ids, ids, ids[:, :2])
    rng = np.random.default_rng(seed)

    def noise(path, leaf):
        mean = float(path[-1].key == "scale")
        return jnp.asarray(rng.normal(mean, 0.1, leaf.shape), jnp.float32)

    return jax.tree.map_with_path(noise, nn.unbox(shapes)["params"])


def random_batch(config: ModelConfig, seed: int, batch=4, length=40, predictions=6):
    """A packed batch: two documents and some padding in each row, distinct masked places."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, config.vocab_size, (batch, length)).astype(np.int32)
    segments, positions = np.zeros_like(ids), np.zeros_like(ids)
    masked = np.zeros((batch, predictions), np.int32)
    for row in range(batch):
        cut, end = np.sort(rng.choice(np.arange(predictions, length), 2, replace=False))
        segments[row, :cut], segments[row, cut:end] = 1, 2
        positions[row, :end] = np.r_[0:cut, 0 : end - cut]
        masked[row] = np.sort(rng.choice(end, predictions, replace=False))
    weights = np.ones(masked.shape, np.float32)
    weights[0, -2:] = 0  # a row with fewer targets than places for them
    return {
        "input_ids": np.where(segments > 0, ids, 0),
        "segment_ids": segments,
        "position_ids": positions,
        "masked_positions": masked,
        "masked_labels": rng.integers(4, config.vocab_size, masked.shape).astype(np.int32),
        "masked_weights": weights,
    }


def logits(config, params, batch, masked_positions=None, **compute):
    places = batch["masked_positions"] if masked_positions is None else masked_positions
    arguments = batch["input_ids"], batch["segment_ids"], batch["position_ids"], places
    return _compiled(config, "__call__", ComputeConfig(**compute))(params, *arguments)


def hidden_states(config, params, *arguments):
    return _compiled(config, "encode")(params, *arguments)


@functools.cache
def _compiled(config, method, compute=None):
    """The model as one compiled function: operation by operation it takes far longer."""
    model = DebertaForMaskedLM(config, compute or ComputeConfig())
    return jax.jit(lambda params, *x: model.apply({"params": params}, *x, method=method))
