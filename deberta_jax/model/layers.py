"""The small parts every module is made of: parameters with logical axes, dense, norm, dropout."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from deberta_jax.kernels.layer_norm import layer_norm
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.parallel.layout import splitting_axes

# Logical axes of the word embedding. Its width has rules of its own: the vocabulary is split on
# every mesh, whatever divides it.
VOCABULARY_TABLE = ("vocab", "table_width")


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


def weight(module: nn.Module, name: str, shape, axes):
    """A float32 parameter with logical axis names, cast to the type that the module computes in.

    It comes with its whole "embed" axis, gathered after the cast. Left to itself the compiler may
    rather move parts of activations around, in many small products.
    """
    return _gathered(_parameter(module, name, shape, axes), axes)


def _parameter(module, name, shape, axes):
    init = nn.initializers.normal(module.config.initializer_range)
    value = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    return value.astype(module.compute.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(value, axes):
    return _laid_out(value, tuple(None if axis == "embed" else axis for axis in axes))


def _gathered_forward(value, axes):
    return _gathered(value, axes), None


def _gathered_backward(axes, _, gradient):
    """Each device keeps the sum of its own part."""
    return (_laid_out(gradient, axes),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def _laid_out(value, axes):
    if jax.sharding.get_abstract_mesh().empty:
        return value
    spec = PartitionSpec(*splitting_axes(axes, value.shape))
    return jax.lax.with_sharding_constraint(value, spec)


def bias(module: nn.Module, name: str, shape, axes):
    init = nn.with_logical_partitioning(nn.initializers.zeros, axes)
    value: Any = module.param(name, init, shape, jnp.float32)
    return value.astype(module.compute.dtype)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, its statistics in float32."""

    config: ModelConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x):
        def parameter(name, init):
            init = nn.with_logical_partitioning(init, ("norm",))
            return self.param(name, init, x.shape[-1:], jnp.float32)

        scale, bias = (
            parameter("scale", nn.initializers.ones),
            parameter("bias", nn.initializers.zeros),
        )
        return layer_norm(x.astype(self.compute.dtype), scale, bias, self.config.layer_norm_eps)


class Dense(nn.Module):
    """x @ kernel + bias over the last axis, with the logical axes of both sides."""

    config: ModelConfig
    compute: ComputeConfig
    features: int
    axes: tuple[str | None, str | None]

    @nn.compact
    def __call__(self, x):
        kernel = weight(self, "kernel", (x.shape[-1], self.features), self.axes)
        # A bias as wide as the residual stream is small: whole, it needs no collective of its own.
        axis = "norm" if self.axes[1] == "embed" else self.axes[1]
        return x @ kernel + bias(self, "bias", (self.features,), (axis,))


class Embedding(nn.Module):
    """A table of vectors; `attend` reads it the other way, as the tied prediction head does.

    Where the collection "delta" holds a second table, a vector is the sum of both tables' rows, and
    no table of sums is ever made (gradient-disentangled sharing, arXiv 2111.09543, section 3.3).
    """

    config: ModelConfig
    compute: ComputeConfig
    rows: int
    axes: tuple[str | None, str | None]

    def setup(self):
        shape = (self.rows, self.config.hidden_size)
        self.embedding = _parameter(self, "embedding", shape, self.axes)

    def __call__(self, ids):
        vectors = self._rows(self.embedding, ids)
        if self.has_variable("delta", "embedding"):
            delta: Any = self.get_variable("delta", "embedding").astype(self.compute.dtype)
            vectors += self._rows(delta, ids)
        return vectors

    def _rows(self, table, ids):
        rows, width = splitting_axes(self.axes, table.shape)
        if not rows and not width:
            return jnp.take(table, ids, axis=0)
        (batch,) = splitting_axes(("batch",), ids.shape[:1])
        look_up = functools.partial(_look_up, rows=rows, width=width)
        specs = PartitionSpec(rows, width), PartitionSpec(batch)
        # Where the batch is whole, so is what is found, which the check would not believe.
        split = jax.shard_map(look_up, in_specs=specs, out_specs=specs[1], check_vma=False)
        return split(table, ids)

    def attend(self, x):
        return x @ self.embedding.T


def _look_up(table, ids, rows, width):
    """A device's own ids in a table that is split by rows, or by width, or both.

    The width is gathered first, so that a device looks up, and adds up gradients of, its own ids.
    The compiler would rather have each device do that for everyone's ids in its part of the width,
    which costs a TPU as many times more as there are parts.
    """
    if width:
        table = jax.lax.all_gather(table, width, axis=1, tiled=True)
    if not rows:
        return jnp.take(table, ids, axis=0)
    own = ids - jax.lax.axis_index(rows) * table.shape[0]
    here = (own >= 0) & (own < table.shape[0])
    found = jnp.take(table, jnp.where(here, own, 0), axis=0)
    return jax.lax.psum(jnp.where(here[..., None], found, 0), rows)
