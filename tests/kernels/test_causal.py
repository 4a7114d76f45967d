"""Causal attention never looks ahead, in any implementation: the gradient there is exactly zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.kernels import cpu, gpu, reference, tpu, xla
from deberta_jax.kernels.cpu import build
from deberta_jax.kernels.protocol import AttentionCall
from deberta_jax.kernels.relative import Relative
from deberta_jax.kernels.tpu import blocks as tpu_blocks
from deberta_jax.model.positions import relative_rows

POSITIONS = dict(span=16, buckets=16, max_relative_positions=64)
LENGTH, SIZE = 140, 32


@pytest.mark.parametrize(
    ("module", "queries"),
    [
        (xla, None),
        (tpu, None),
        (gpu, None),
        (cpu, None),
        (reference, None),
        (reference, 24),
        (xla, 24),
        (tpu, 24),
        (gpu, 24),
    ],
    ids=lambda x: x.__name__.rpartition(".")[2] if hasattr(x, "__name__") else str(x),
)
def test_no_gradient_reaches_the_future_or_another_document(module, queries, seed, monkeypatch):
    monkeypatch.setattr(tpu_blocks, "LARGEST_BLOCK", 128)  # two blocks of a short sequence
    rng = np.random.default_rng(seed)
    cut = int(rng.integers(40, 80))
    now = int(rng.integers(cut + 10, LENGTH - 10))
    segments = np.where(np.arange(LENGTH) < cut, 1, 2).astype(np.int32)[None]
    places = None
    if queries:
        places = rng.choice(LENGTH, (1, queries), replace=False).astype(np.int32)
        places[0, :2] = cut, now  # so that something is seen
    at = np.arange(LENGTH)[None] if places is None else places
    query_segments = segments[0][at]
    counted = (query_segments == 2) & (at <= now)
    content = [rng.normal(size=(1, n, 2, SIZE)) for n in (at.shape[1], LENGTH, LENGTH)]
    tables = rng.normal(size=(2, 2 * POSITIONS["span"], 2, SIZE)).astype(np.float32)
    rows = relative_rows(np.arange(1 - LENGTH, LENGTH), **POSITIONS)
    assert build.problem() is None
    options = {} if module in (xla, cpu, reference) else {"interpret": True}

    def seen(query, key, value):
        call = AttentionCall(
            *(query, key, value, Relative(*tables, rows)),
            jnp.asarray(query_segments),
            jnp.asarray(segments),
            causal=True,
            query_positions_BQ=places,
        )
        out = module.attention(call, **options)
        return jnp.sum(jnp.where(counted[..., None, None], out, 0) ** 2)

    content = [x.astype(np.float32) for x in content]
    query, key, value = jax.jit(jax.grad(seen, argnums=(0, 1, 2)))(*content)
    past = (segments[0] == 2) & (np.arange(LENGTH) <= now)
    for gradient, visible in ((key, past), (value, past), (query, counted[0])):
        gradient = np.abs(np.asarray(gradient)[0]).max(axis=(1, 2))
        assert not np.any(gradient[~visible])
        assert np.any(gradient[visible])
    # The last place that is seen is seen: the mask is not one too early.
    assert np.abs(np.asarray(value)[0, now]).max() > 0
