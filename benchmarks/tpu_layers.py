"""What the layers of a step cost on a TPU chip under the loop over layers, forward and backward.

    python -m benchmarks.tpu_layers [--remat dots full] [--unroll 1] [--width base] [--layers 11]

It needs no TPU (see `benchmarks.tpu_layer`, which has one layer by itself: nothing is kept there
for a backward pass that comes later, and nothing stacked). 32 x 512 tokens, bfloat16, dropout 0.1.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.tpu_layer import BATCH, LENGTH, WIDTHS, configs, megacycles
from deberta_jax.estimates.cost import estimate_function, prepare
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.encoder import Encoder
from deberta_jax.parallel.chips import CHIPS

DROPOUT = 0.1


def layers_program(config: ModelConfig, compute: ComputeConfig) -> tuple[Callable, tuple]:
    """(function, arguments): gradients of all layers but the last by their parameters and input."""
    encoder = Encoder(config, compute, deterministic=False)
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    hidden = jax.ShapeDtypeStruct((BATCH, LENGTH, config.hidden_size), jnp.bfloat16)

    def run(params, hidden_BLE, segments_BL, seed):
        rngs, method = {"dropout": jax.random.key(seed)}, Encoder.until_last
        return encoder.apply(params, hidden_BLE, segments_BL, rngs=rngs, method=method)

    def initialize(hidden_BLE, segments_BL):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        return nn.unbox(encoder.init(rngs, hidden_BLE, segments_BL, method=Encoder.until_last))

    def gradients(params, hidden_BLE, segments_BL, seed, cotangent_BLE):
        def forward(params, hidden_BLE):
            return run(params, hidden_BLE, segments_BL, seed)

        _, pull = jax.vjp(forward, params, hidden_BLE)
        return pull(cotangent_BLE)

    params = jax.eval_shape(initialize, hidden, tokens)
    return gradients, (params, hidden, tokens, jax.ShapeDtypeStruct((), jnp.uint32), hidden)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chip", default="v5e", choices=list(CHIPS))
    parser.add_argument("--width", default="base", choices=list(WIDTHS))
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--remat", nargs="+", default=["dots", "full"])
    parser.add_argument("--unroll", type=int, default=1)
    args = parser.parse_args(argv)
    prepare()
    print("| remat | unroll | kernels | matmuls | other | Mcycles a layer | GiB | compiled in, s |")
    print(f"|{'---|' * 8}")
    base, compute = configs(args.width, DROPOUT, attention="tpu")
    config = dataclasses.replace(base, num_hidden_layers=args.layers + 1)
    for remat in args.remat:
        start = time.time()
        own = dataclasses.replace(compute, remat=remat, unroll=args.unroll)
        function, operands = layers_program(config, own)
        estimate = estimate_function(function, operands, args.chip)
        cells = [f"{cycles / args.layers:.2f}" for cycles in megacycles(estimate)]
        cells += [f"{estimate.peak_bytes / 2**30:.2f}", f"{time.time() - start:.0f}"]
        print(f"| {remat} | {args.unroll} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
