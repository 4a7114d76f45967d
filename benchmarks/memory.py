"""Temporary memory of attention, forward and backward, by length and implementation.

    python -m benchmarks.memory --plot=memory.png

As the compiler plans it (`memory_analysis`), so nothing runs: batch 1, 12 heads of 64; float32 on
the CPU, bfloat16 on the TPU (v5e, which needs no TPU; short sequences stay in VMEM there).
"""

import argparse
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import cpu_attention
from benchmarks.cpu_attention import (
    disentangled_call,
    forward_and_backward,
    operand_shapes,
    plain_call,
)
from deberta_jax.estimates.cost import estimate_function, prepare
from deberta_jax.kernels import tpu

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
MIB = 2**20


def on_cpu(attention: Callable) -> Callable[[int], int]:
    """`length -> bytes` of the CPU's program."""

    def bytes_at(length):
        compiled = forward_and_backward(attention, 1, length)
        return compiled.memory_analysis().temp_size_in_bytes

    return bytes_at


def on_tpu(call: Callable) -> Callable[[int], int]:
    """`length -> bytes` of the fused kernels' program; `call` makes the attention's arguments."""

    def both(gradient, segments, *operands):
        output, pull = jax.vjp(lambda *x: tpu.attention(call(*x, segments)), *operands)
        return output, pull(gradient)

    def bytes_at(length):
        *shapes, segments = operand_shapes(1, length)
        shapes = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in shapes]
        return estimate_function(both, (shapes[0], segments, *shapes), "v5e").temp_bytes

    return bytes_at


ON_CPU = {
    "XLA, ours": on_cpu(cpu_attention.in_xla),
    "XLA, ours, no relative term": on_cpu(cpu_attention.in_xla_without_terms),
    "plain attention, no relative term": on_cpu(cpu_attention.plain),
    "gather": on_cpu(cpu_attention.gather),
}
ON_TPU = {
    "TPU kernel": on_tpu(disentangled_call),
    "TPU kernel, no relative term": on_tpu(plain_call),
}
PLATFORMS = {"cpu": ON_CPU, "tpu": ON_TPU}


def plot(table: dict[str, list[float]], lengths: Sequence[int], path: str) -> None:
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for name, sizes in table.items():
        axes.loglog(lengths, sizes, marker="o", label=name)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_xlabel("length (tokens)")
    axes.set_ylabel("temporary memory (MiB)")
    axes.set_title("Attention forward + backward: batch 1, 12 heads of 64")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", default="memory.png", help="where the plot goes")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--platforms", nargs="+", default=list(PLATFORMS), choices=list(PLATFORMS))
    args = parser.parse_args(argv)
    if "tpu" in args.platforms:
        prepare()
    print(f"| MiB at L = | {' | '.join(map(str, args.lengths))} |")
    print("|---|" + "---|" * len(args.lengths))
    table = {}
    for platform in args.platforms:
        for name, bytes_at in PLATFORMS[platform].items():
            table[name] = [bytes_at(length) / MIB for length in args.lengths]
            cells = " | ".join(f"{size:,.0f}" for size in table[name])
            print(f"| {name} | {cells} |", flush=True)
    plot(table, args.lengths, args.plot)


if __name__ == "__main__":
    main()
