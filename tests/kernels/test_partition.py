"""Attention on a mesh: each device attends with its own items and heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from deberta_jax import kernels
from deberta_jax.kernels import attention, cpu, gpu, tpu, xla
from deberta_jax.kernels.cpu import build
from deberta_jax.kernels.relative import Relative
from deberta_jax.model import compute
from deberta_jax.model.positions import relative_rows
from tests.devices import on_eight_devices

PARTITION = PartitionSpec(("data", "fsdp"), None, "tensor", None)


@pytest.mark.parametrize("implementation", ["tpu", "gpu", "cpu", "xla"])
def test_a_mesh_changes_nothing(implementation, seed):
    on_eight_devices(check_mesh, implementation, seed)


def check_mesh(implementation, seed):
    """Dropout included: output and every gradient, over items and heads."""
    assert build.problem() is None
    rng = np.random.default_rng(int(seed))
    length, heads, size = 128, 4, 32
    interpreted = {"interpret": True} if implementation in ("tpu", "gpu") else {}
    kernel = {"tpu": tpu, "gpu": gpu, "cpu": cpu, "xla": xla}[implementation].attention
    kernel = functools.partial(kernel, dropout_rate=0.25, **interpreted)
    content = [jnp.asarray(rng.normal(size=(4, length, heads, size)), jnp.float32) for _ in "qkv"]
    tables = [jnp.asarray(rng.normal(size=(32, heads, size)), jnp.float32) for _ in "kq"]
    segments = jnp.asarray(rng.integers(0, 3, (4, length)), jnp.int32)
    positions = dict(span=16, buckets=16, max_relative_positions=32)
    rows = relative_rows(np.arange(-(length - 1), length), **positions)
    gradient = jnp.asarray(rng.normal(size=content[0].shape), jnp.float32)

    def run(operands):
        relative = Relative(*operands[3:], rows)
        optional = {"dropout_rng": jax.random.key(int(seed))}
        arrays = *operands[:3], segments, segments, optional
        partition = None if jax.sharding.get_abstract_mesh().empty else PARTITION
        return attention._partitioned(kernel, partition, relative, *arrays)

    @jax.jit
    def both(operands):
        output, pull = jax.vjp(run, operands)
        return output, *pull(gradient)[0]

    operands = (*content, *tables)
    alone = both(operands)
    mesh = jax.make_mesh((2, 1, 4), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        text = jax.jit(both).lower(operands).as_text()
        assert "shard_map" in text or "manual" in text
        together = jax.jit(lambda operands: both(operands))(operands)
    for one, many in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, many, atol=1e-5 * float(jnp.max(jnp.abs(one))))


def test_the_config_offers_every_implementation():
    assert compute._CHOICES["attention"] == ("auto", *kernels.IMPLEMENTATIONS)


def test_auto_says_once_what_it_falls_back_to(monkeypatch, caplog):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    attention._log_once.cache_clear()
    query = jnp.ones((1, 8, 2, 10))
    ones = jnp.ones((1, 8), jnp.int32)
    for _ in range(2):
        kernels.disentangled_attention(query, query, query, None, ones, ones)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "attention falls back to plain XLA: the head size must be a multiple of 16, not 10"
    ]
