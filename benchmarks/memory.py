"""Temporary memory of attention, forward and backward, by length and implementation.

    python -m benchmarks.memory --plot=memory.png

As the compiler plans it (`memory_analysis`), so nothing runs: batch 1, 12 heads of 64, float32.
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import cpu_attention
from benchmarks.cpu_attention import forward_and_backward

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
MIB = 2**20


def on_cpu(attention):
    """`length -> bytes` of the CPU's program."""

    def bytes_at(length):
        compiled = forward_and_backward(attention, 1, length)
        return compiled.memory_analysis().temp_size_in_bytes

    return bytes_at


# What is measured: `length -> bytes`, by name.
IMPLEMENTATIONS = {
    "XLA, ours": on_cpu(cpu_attention.ours),
    "XLA, ours, no relative term": on_cpu(cpu_attention.ours_without_terms),
    "plain attention, no relative term": on_cpu(cpu_attention.plain),
    "gather": on_cpu(cpu_attention.gather),
}


def plot(table, path):
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for name, sizes in table.items():
        axes.loglog(LENGTHS, sizes, marker="o", label=name)
    axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
    axes.set_xlabel("length (tokens)")
    axes.set_ylabel("temporary memory (MiB)")
    axes.set_title("Attention forward + backward: batch 1, 12 heads of 64, float32")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", default="memory.png", help="where the plot goes")
    path = parser.parse_args().plot
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
