"""What dropout of hidden states takes on this machine: python -m benchmarks.dropout

Ours (`model.dropout`) beside what `flax.linen.Dropout` does with the two generators of
`jax.random`, on 8 x 512 hidden states of 768, in turns; medians.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from deberta_jax.model import dropout

RATE, SHAPE, TURNS = 0.1, (8, 512, 768), 20


def hashed(key, x):
    return jnp.where(dropout.keep(key, RATE, x.shape), x / (1 - RATE), 0)


def drawn(key, x):
    return jnp.where(jax.random.bernoulli(key, 1 - RATE, x.shape), x / (1 - RATE), 0)


def main() -> None:
    x = jnp.ones(SHAPE)
    programs = {
        "ours": (jax.jit(hashed), jax.random.key(0)),
        "threefry2x32": (jax.jit(drawn), jax.random.key(0)),
        "rbg": (jax.jit(drawn), jax.random.key(0, impl="rbg")),
    }
    seconds = {name: [] for name in programs}
    for turn in range(TURNS + 2):
        for name, (program, key) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(key, x))
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    ours = statistics.median(seconds["ours"])
    for name, found in seconds.items():
        median = statistics.median(found)
        print(f"{name}: {1e3 * median:.2f} ms, {median / ours:.1f} x ours")


if __name__ == "__main__":
    main()
