"""The small parts every module is made of: parameters with logical axes, dense, norm, dropout."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deberta_jax.model.config import ModelConfig


def gelu(x):
    """x Phi(x). In bfloat16 Phi comes from one tanh, off by at most 4e-5, a hundredth of what
    bfloat16 rounds away: the erf of XLA costs a TPU an eighth of the whole layer."""
    if x.dtype != jnp.bfloat16:
        return jax.nn.gelu(x, approximate=False)
    y = x.astype(jnp.float32)
    square = jnp.minimum(y * y, 25.0)  # beyond, Phi is 0 or 1, and the polynomial would turn
    odd = y * (0.79761890 + square * (0.03691315 - 0.00033760 * square))
    return (y * (0.5 + 0.5 * jnp.tanh(odd))).astype(x.dtype)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


def weight(module: nn.Module, name: str, config: ModelConfig, shape, axes):
    """A float32 parameter with logical axis names, cast to the type that the model computes in."""
    init = nn.initializers.normal(config.initializer_range)
    value = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    return value.astype(config.dtype)


def bias(module: nn.Module, name: str, config: ModelConfig, shape, axes):
    init = nn.with_logical_partitioning(nn.initializers.zeros, axes)
    return module.param(name, init, shape, jnp.float32).astype(config.dtype)


def layer_norm(config: ModelConfig, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm over the last axis, its statistics in float32."""
    return nn.LayerNorm(
        epsilon=config.layer_norm_eps,
        dtype=config.dtype,
        use_fast_variance=False,  # E[x^2] - E[x]^2 cancels: hidden states would be off by 1e-4
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
        name=name,
    )


class Dense(nn.Module):
    """x @ kernel + bias over the last axis, with the logical axes of both sides."""

    config: ModelConfig
    features: int
    axes: tuple[str | None, str | None]

    @nn.compact
    def __call__(self, x):
        kernel = weight(self, "kernel", self.config, (x.shape[-1], self.features), self.axes)
        return x @ kernel + bias(self, "bias", self.config, (self.features,), self.axes[1:])


class Embedding(nn.Module):
    """A table of vectors; `attend` reads it the other way, as the tied prediction head does."""

    config: ModelConfig
    rows: int
    axes: tuple[str | None, str | None]

    def setup(self):
        self.embedding = weight(
            self, "embedding", self.config, (self.rows, self.config.hidden_size), self.axes
        )

    def __call__(self, ids):
        return jnp.take(self.embedding, ids, axis=0)

    def attend(self, x):
        return x @ self.embedding.T
