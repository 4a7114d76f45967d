"""What dropout of hidden states takes on this machine: python -m benchmarks.dropout

Ours (`model.dropout`) beside what `flax.linen.Dropout` does with the two generators of
`jax.random`, on 8 x 512 hidden states of 768, in turns; medians.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from deberta_jax.model import dropout

RATE, LENGTH, WIDTH = 0.1, 512, 768
WARM_UP = 2


def hashed(key, x):
    return jnp.where(dropout.keep(key, RATE, x.shape), x / (1 - RATE), 0)


def drawn(key, x):
    return jnp.where(jax.random.bernoulli(key, 1 - RATE, x.shape), x / (1 - RATE), 0)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args(argv)
    x = jnp.ones((args.batch, LENGTH, WIDTH))
    programs = {
        "ours": (jax.jit(hashed), jax.random.key(0)),
        "threefry2x32": (jax.jit(drawn), jax.random.key(0)),
        "rbg": (jax.jit(drawn), jax.random.key(0, impl="rbg")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(WARM_UP + args.repeats):
        for name, (program, key) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(key, x))
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {1e3 * median:.2f} ms, {median / medians['ours']:.1f} x ours")


if __name__ == "__main__":
    main()
