"""Attention alone on the CPU, forward and backward, beside plain attention and the gather.

    python -m benchmarks.cpu_attention

float32, base heads (12 of 64), log buckets. The variants run in turn, one call each, several times
over; the table gives medians, and each variant's median ratio to ours. CPU time is that of all
threads: it tells on a busy machine what the clock cannot.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.kernels import xla
from deberta_jax.kernels.protocol import AttentionCall
from deberta_jax.kernels.relative import Relative
from deberta_jax.model.positions import relative_rows

SHAPES = ((1, 512), (4, 128), (1, 2048))
HEADS, SIZE, BUCKETS, FURTHEST = 12, 64, 256, 512


def distance_rows(length):
    return relative_rows(np.arange(1 - length, length), BUCKETS, BUCKETS, FURTHEST)


def ours(query, key, value, relative_key, relative_query, segments):
    relative = Relative(relative_key, relative_query, distance_rows(key.shape[1]))
    return xla.attention(AttentionCall(query, key, value, relative, segments, segments))


def ours_without_terms(query, key, value, relative_key, relative_query, segments):
    return xla.attention(AttentionCall(query, key, value, None, segments, segments))


def plain(query, key, value, relative_key, relative_query, segments):
    """BERT's attention as XLA's autodiff makes it: no relative term."""
    scores = jnp.einsum("bihd,bjhd->bhij", query, key) / np.sqrt(SIZE)
    return attended(scores, value, segments)


def gather(query, key, value, relative_key, relative_query, segments):
    """The released formulation: an L x L bias a head, out of Q Kr^T and K Qr^T, by gathers."""
    length = key.shape[1]
    places = jnp.arange(length)
    rows = jnp.asarray(distance_rows(length), jnp.int32)[places[:, None] - places + length - 1]
    rows = rows[None, None]
    scores = jnp.einsum("bihd,bjhd->bhij", query, key)
    c2p = jnp.einsum("bihd,rhd->bhir", query, relative_key)
    scores += jnp.take_along_axis(c2p, rows, axis=-1)
    p2c = jnp.einsum("bjhd,rhd->bhjr", key, relative_query)
    scores += jnp.take_along_axis(p2c, rows.swapaxes(-1, -2), axis=-1).swapaxes(-1, -2)
    return attended(scores / np.sqrt(3 * SIZE), value, segments)


def attended(scores, value, segments):
    visible = (segments[:, :, None] == segments[:, None]) & (segments[:, None] > 0)
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -1e30), axis=-1)
    return jnp.einsum("bhij,bjhd->bihd", weights, value)


VARIANTS = {
    "disentangled, ours": ours,
    "disentangled, gather": gather,
    "plain (no relative term), XLA's autodiff": plain,
    "plain (no relative term), ours": ours_without_terms,
}


def operand_shapes(batch, length):
    """(query, key, value, relative keys, relative queries, segments)."""
    content = jax.ShapeDtypeStruct((batch, length, HEADS, SIZE), jnp.float32)
    table = jax.ShapeDtypeStruct((2 * BUCKETS, HEADS, SIZE), jnp.float32)
    segments = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    return content, content, content, table, table, segments


def forward_and_backward(attention, batch, length):
    """The compiled gradient, by all operands, of the sum of squares of the attention's result."""

    def loss(query, key, value, relative_key, relative_query, segments):
        out = attention(query, key, value, relative_key, relative_query, segments)
        return jnp.sum(out**2)

    return jax.jit(jax.grad(loss, range(5))).lower(*operand_shapes(batch, length)).compile()


def finished(compiled, operands):
    return jax.block_until_ready(compiled(*operands))


def interleaved(calls, repeats):
    """{name: [(seconds, CPU seconds)]} of the calls, each made once in every turn."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            clock, cpu = time.perf_counter(), time.process_time()
            call()
            times[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    print("| batch x length | attention | ms | CPU ms | time relative to ours (CPU) |")
    print("|---|---|---|---|---|")
    for batch, length in SHAPES:
        rng = np.random.default_rng(0)
        operands = [
            jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in operand_shapes(batch, length)
        ]
        operands[-1] = jnp.ones_like(operands[-1])
        calls = {}
        for name, attention in VARIANTS.items():
            compiled = forward_and_backward(attention, batch, length)
            calls[name] = functools.partial(finished, compiled, operands)
        times = {name: np.array(t) for name, t in interleaved(calls, repeats).items()}
        own = times["disentangled, ours"]
        for name, taken in times.items():
            wall, cpu = 1000 * np.median(taken, axis=0)
            ratio, cpu_ratio = np.median(taken / own, axis=0)
            print(
                f"| {batch} x {length} | {name} | {wall:.0f} | {cpu:.0f} "
                f"| {ratio:.2f} ({cpu_ratio:.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
