"""Temporary memory of attention, forward and backward, by length and implementation.

    python -m benchmarks.memory --plot=memory.png

As the compiler plans it (`memory_analysis`), so nothing runs: batch 1, 12 heads of 64; float32 on
the CPU, bfloat16 on the TPU (v5e, which needs no TPU; short sequences stay in VMEM there).
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import cpu_attention
from benchmarks.cpu_attention import distance_rows, forward_and_backward, operand_shapes
from deberta_jax.estimates import cost as estimate
from deberta_jax.kernels import tpu
from deberta_jax.kernels.protocol import AttentionCall
from deberta_jax.kernels.relative import Relative

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
MIB = 2**20


def on_cpu(attention):
    """`length -> bytes` of the CPU's program."""

    def bytes_at(length):
        compiled = forward_and_backward(attention, 1, length)
        return compiled.memory_analysis().temp_size_in_bytes

    return bytes_at


def on_tpu(with_terms):
    """`length -> bytes` of the fused kernels' program."""

    def attend(query, key, value, relative_key, relative_query, segments):
        relative = None
        if with_terms:
            relative = Relative(relative_key, relative_query, distance_rows(key.shape[1]))
        return tpu.attention(AttentionCall(query, key, value, relative, segments, segments))

    def bytes_at(length):
        *shapes, segments = operand_shapes(1, length)
        shapes = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in shapes]

        def both(gradient, segments, *operands):
            output, pull = jax.vjp(lambda *x: attend(*x, segments), *operands)
            return output, pull(gradient)

        return estimate.estimate_function(both, (shapes[0], segments, *shapes), "v5e").temp_bytes

    return bytes_at


# What is measured: `length -> bytes`, by name.
IMPLEMENTATIONS = {
    "XLA, ours": on_cpu(cpu_attention.ours),
    "XLA, ours, no relative term": on_cpu(cpu_attention.ours_without_terms),
    "plain attention, no relative term": on_cpu(cpu_attention.plain),
    "gather": on_cpu(cpu_attention.gather),
    "TPU kernel": on_tpu(True),
    "TPU kernel, no relative term": on_tpu(False),
}


def plot(table, path):
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for name, sizes in table.items():
        axes.loglog(LENGTHS, sizes, marker="o", label=name)
    axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
    axes.set_xlabel("length (tokens)")
    axes.set_ylabel("temporary memory (MiB)")
    axes.set_title("Attention forward + backward: batch 1, 12 heads of 64")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", default="memory.png", help="where the plot goes")
    path = parser.parse_args().plot
    estimate.prepare()
    print(f"| MiB at L = | {' | '.join(map(str, LENGTHS))} |")
    print("|---|" + "---|" * len(LENGTHS))
    table = {}
    for name, bytes_at in IMPLEMENTATIONS.items():
        table[name] = [bytes_at(length) / MIB for length in LENGTHS]
        cells = " | ".join(f"{size:,.0f}" for size in table[name])
        print(f"| {name} | {cells} |", flush=True)
    plot(table, path)


if __name__ == "__main__":
    main()
