"""Time of a disentangled attention layer on a CUDA GPU: our kernels against PyTorch's.

    python -m benchmarks.gpu_attention

A layer's attention with its projections, forward and backward, as in DeBERTa-v3 base: 12 heads of
64, log buckets, c2p and p2c, no dropout, bfloat16, 16,384 tokens at every length. Beside ours:
`transformers` eager, and where they are installed, `disentangled-flash` and `flashdeberta`. All
have the same weights. Prints Markdown: the median of 20 runs in ms, each waited for, with the
framework's own overhead; how many times as fast as eager; and the largest difference of an output
from eager's. Every implementation runs as its users run it: PyTorch eagerly, JAX compiled.

With --interpret it runs on the CPU, our kernels interpreted by Pallas: the outputs are compared,
and the times mean nothing.
"""

import argparse
import importlib
import importlib.metadata
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from deberta_jax.kernels import gpu
from deberta_jax.kernels.protocol import AttentionCall
from deberta_jax.kernels.relative import Relative
from deberta_jax.model.positions import relative_rows

TOKENS = 16_384
LENGTHS = (512, 2048, 8192)
HEADS, HEAD_SIZE = 12, 64
POSITIONS = dict(span=256, buckets=256, max_relative_positions=512)
EAGER, OURS = "transformers eager", "ours"
# Name of the package, module and class of its layer.
PACKAGES = {
    "disentangled-flash": ("disentangled_flash", "TritonTrainingDisentangledSelfAttention"),
    "flashdeberta": ("flashdeberta.model", "FlashDisentangledSelfAttention"),
}


def configuration() -> DebertaV2Config:
    settings: dict[str, Any] = dict(
        hidden_size=HEADS * HEAD_SIZE,
        num_attention_heads=HEADS,
        relative_attention=True,
        position_buckets=POSITIONS["buckets"],
        max_relative_positions=POSITIONS["max_relative_positions"],
        pos_att_type=["c2p", "p2c"],
        share_att_key=True,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    return DebertaV2Config(**settings)


def torch_layers() -> dict[str, tuple[torch.nn.Module, Callable]]:
    """{name: (layer, the shape of its mask)}, all with the weights of the first."""
    eager = DisentangledSelfAttention(configuration())
    layers: dict[str, tuple[torch.nn.Module, Callable]] = {
        EAGER: (eager, lambda batch, length: (batch, 1, length, length))
    }
    for package, (module, name) in PACKAGES.items():
        try:
            layer = getattr(importlib.import_module(module), name)(configuration())
        except Exception as error:  # not installed, or not for this GPU: say so and go on
            print(f"{package}: left out ({type(error).__name__}: {error})")
            continue
        layer.load_state_dict(eager.state_dict())
        version = importlib.metadata.version(package)
        layers[f"{package} {version}"] = (layer, lambda batch, length: (batch, length))
    return layers


def torch_run(layer, mask_shape, arrays, device: str) -> Callable:
    """A function that runs forward and backward, and returns the output."""
    layer = layer.to(device, torch.bfloat16).train()
    states, relative, d_output = (
        torch.tensor(x, dtype=torch.bfloat16, device=device) for x in arrays
    )
    states.requires_grad_()
    relative.requires_grad_()
    mask = torch.ones(mask_shape, dtype=torch.bool, device=device)

    def run():
        layer.zero_grad()
        states.grad = relative.grad = None
        output = layer(states, mask, rel_embeddings=relative)[0]
        output.backward(d_output)
        if device == "cuda":
            torch.cuda.synchronize()
        return output.detach()

    return run


def our_run(eager, arrays, interpret: bool = False) -> Callable:
    """The same of our kernels, with the same weights."""
    weights = [
        tuple(
            jnp.asarray(x.detach().float().cpu().numpy().T, jnp.bfloat16)
            for x in (p.weight, p.bias)
        )
        for p in (eager.query_proj, eager.key_proj, eager.value_proj)
    ]
    states, relative, d_output = (jnp.asarray(x, jnp.bfloat16) for x in arrays)
    batch, length, _ = states.shape
    rows = relative_rows(np.arange(-(length - 1), length), **POSITIONS)
    segments = jnp.ones((batch, length), jnp.int32)

    def heads(inputs, weight):
        return (inputs @ weight[0] + weight[1]).reshape(*inputs.shape[:-1], HEADS, HEAD_SIZE)

    def layer(weights, states, relative):
        query, key, value = (heads(states, weight) for weight in weights)
        tables = Relative(heads(relative, weights[1]), heads(relative, weights[0]), rows)
        call = AttentionCall(query, key, value, tables, segments, segments)
        output = gpu.attention(call, interpret=interpret)
        return output.reshape(states.shape)

    @jax.jit
    def both(weights, states, relative, d_output):
        output, backward = jax.vjp(layer, weights, states, relative)
        return output, backward(d_output)

    return lambda: jax.block_until_ready(both(weights, states, relative, d_output))[0]


def median_ms(run: Callable, repeats: int) -> float:
    times = []
    warm_up = min(5, repeats)
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[warm_up:])


def inputs(batch: int, length: int, seed: int = 0) -> list[np.ndarray]:
    """Hidden states, relative embeddings and the gradient of the output, in float32."""
    rng = np.random.default_rng(seed)
    width = HEADS * HEAD_SIZE
    shapes = (batch, length, width), (2 * POSITIONS["span"], width), (batch, length, width)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def measure(length: int, layers: dict[str, tuple[torch.nn.Module, Callable]], args) -> None:
    """Prints a row for each implementation at one length."""
    batch = max(1, args.tokens // length)
    arrays = inputs(batch, length)
    device = "cpu" if args.interpret else "cuda"
    eager: tuple[np.ndarray, float] | None = None
    for name in (*layers, OURS):
        try:
            if name == OURS:
                run = our_run(layers[EAGER][0], arrays, args.interpret)
                output = np.asarray(run(), np.float32)
            else:
                layer, mask_shape = layers[name]
                run = torch_run(layer, mask_shape(batch, length), arrays, device)
                output = run().float().cpu().numpy()
            milliseconds = median_ms(run, args.repeats)
        except torch.OutOfMemoryError:
            print(f"| {length} | {name} | out of memory | | |")
            continue
        if name == EAGER:
            eager = output, milliseconds
        against = ("", "")
        if eager is not None:
            difference = np.abs(output - eager[0]).max()
            against = f"{eager[1] / milliseconds:.2f}", f"{difference:.4f}"
        print(f"| {length} | {name} | {milliseconds:.2f} | {' | '.join(against)} |")
        del run
        torch.cuda.empty_cache()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="in a batch of any length")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--interpret", action="store_true", help="on the CPU, for the outputs only")
    args = parser.parse_args(argv)
    if args.interpret:
        device = "interpreted on the CPU"
    elif torch.cuda.is_available() and jax.default_backend() == "gpu":
        device = torch.cuda.get_device_name()
    else:
        sys.exit("This benchmark needs a CUDA GPU that both PyTorch and JAX see; or --interpret.")
    print(f"{device}, JAX {jax.__version__}, PyTorch {torch.__version__}\n")
    layers = torch_layers()
    print("\n| length | implementation | forward + backward, ms | × eager | largest difference |")
    print("|---|---|---|---|---|")
    for length in args.lengths:
        measure(length, layers, args)


if __name__ == "__main__":
    main()
