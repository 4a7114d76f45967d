"""Attention alone on the CPU, forward and backward, beside plain attention and the gather.

    python -m benchmarks.cpu_attention

float32, base heads (12 of 64), log buckets. The variants run in turn, one call each, several times
over; the table gives medians, and each variant's median ratio to the compiled kernel. CPU time is
that of all threads: it tells on a busy machine what the clock cannot.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.kernels import cpu, xla
from deberta_jax.kernels.protocol import AttentionCall
from deberta_jax.kernels.relative import Relative
from deberta_jax.model.positions import relative_rows

SHAPES = ("1x512", "4x128", "1x2048")
HEADS, SIZE, BUCKETS, FURTHEST = 12, 64, 256, 512


def distance_rows(length):
    return relative_rows(np.arange(1 - length, length), BUCKETS, BUCKETS, FURTHEST)


def disentangled_call(query, key, value, relative_key, relative_query, segments):
    relative = Relative(relative_key, relative_query, distance_rows(key.shape[1]))
    return AttentionCall(query, key, value, relative, segments, segments)


def plain_call(query, key, value, relative_key, relative_query, segments):
    return AttentionCall(query, key, value, None, segments, segments)


def compiled_kernel(*operands):
    call = disentangled_call(*operands)
    cpu.IMPLEMENTATION.require(call)
    return cpu.attention(call)


def in_xla(*operands):
    return xla.attention(disentangled_call(*operands))


def in_xla_without_terms(*operands):
    return xla.attention(plain_call(*operands))


def plain(query, key, value, relative_key, relative_query, segments):
    """BERT's attention as XLA's autodiff makes it: no relative term."""
    scores = jnp.einsum("bihd,bjhd->bhij", query, key) / np.sqrt(SIZE)
    return attended(scores, value, segments)


def gather(query, key, value, relative_key, relative_query, segments):
    """The released formulation: an L x L bias a head, out of Q Kr^T and K Qr^T, by gathers."""
    length = key.shape[1]
    positions = jnp.arange(length)
    distances = positions[:, None] - positions + length - 1
    rows = jnp.asarray(distance_rows(length), jnp.int32)[distances][None, None]
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


OURS = "disentangled, compiled kernel"
DISENTANGLED = {
    OURS: compiled_kernel,
    "disentangled, plain XLA": in_xla,
    "disentangled, gather": gather,
}
WITHOUT_TERMS = {
    "plain (no relative term), XLA's autodiff": plain,
    "plain (no relative term), ours in XLA": in_xla_without_terms,
}


def operand_shapes(batch: int, length: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """(query, key, value, relative keys, relative queries, segments)."""
    content = jax.ShapeDtypeStruct((batch, length, HEADS, SIZE), jnp.float32)
    table = jax.ShapeDtypeStruct((2 * BUCKETS, HEADS, SIZE), jnp.float32)
    segments = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    return content, content, content, table, table, segments


def random_operands(batch: int, length: int) -> list[jax.Array]:
    """Operands of one document a row."""
    rng = np.random.default_rng(0)
    *content, segments = operand_shapes(batch, length)
    operands = [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in content]
    return [*operands, jnp.ones(segments.shape, segments.dtype)]


def forward_and_backward(attention: Callable, batch: int, length: int):
    """The compiled gradient, by all operands, of the sum of squares of the attention's result."""

    def loss(*operands):
        return jnp.sum(attention(*operands) ** 2)

    return jax.jit(jax.grad(loss, range(5))).lower(*operand_shapes(batch, length)).compile()


def finished(compiled, operands):
    return jax.block_until_ready(compiled(*operands))


def interleaved(calls: dict[str, Callable], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """{name: [(seconds, CPU seconds)]} of the calls, each made once in every turn."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            clock, cpu_clock = time.perf_counter(), time.process_time()
            call()
            times[name].append((time.perf_counter() - clock, time.process_time() - cpu_clock))
    return times


def measure(batch: int, length: int, repeats: int) -> None:
    """Prints a row for each variant at one shape."""
    operands = random_operands(batch, length)
    calls: dict[str, Callable] = {}
    for name, attention in (DISENTANGLED | WITHOUT_TERMS).items():
        compiled = forward_and_backward(attention, batch, length)
        calls[name] = functools.partial(finished, compiled, operands)
    times = {name: np.array(t) for name, t in interleaved(calls, repeats).items()}
    for name, taken in times.items():
        wall, cpu_time = 1000 * np.median(taken, axis=0)
        ratio, cpu_ratio = np.median(taken / times[OURS], axis=0)
        print(
            f"| {batch} x {length} | {name} | {wall:.0f} | {cpu_time:.0f} "
            f"| {ratio:.2f} ({cpu_ratio:.2f}) |",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="BATCHxLENGTH of each")
    args = parser.parse_args(argv)
    print("| batch x length | attention | ms | CPU ms | time relative to the kernel's (CPU) |")
    print("|---|---|---|---|---|")
    for shape in args.shapes:
        batch, length = map(int, shape.split("x"))
        measure(batch, length, args.repeats)


if __name__ == "__main__":
    main()
