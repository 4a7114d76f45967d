"""Time of a disentangled attention layer on a CUDA GPU: our kernels against PyTorch's.

    python -m benchmarks.gpu_attention

A layer's attention with its projections, forward and backward, as in DeBERTa-v3 base: 12 heads of
64, log buckets, c2p and p2c, no dropout, bfloat16, 16,384 tokens at every length. Beside ours:
`transformers` eager, and where they are installed, `disentangled-flash` and `flashdeberta`. All
have the same weights. Prints Markdown: the median of 20 runs in ms, each waited for, with the
framework's own overhead; how many times as fast as eager; and the largest difference of an output
from eager's. Every implementation runs as its users run it: PyTorch eagerly, JAX compiled.
"""

import importlib
import importlib.metadata
import os
import statistics
import sys
import time

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
# Name of the package, module and class of its layer.
PACKAGES = {
    "disentangled-flash": ("disentangled_flash", "TritonTrainingDisentangledSelfAttention"),
    "flashdeberta": ("flashdeberta.model", "FlashDisentangledSelfAttention"),
}


def configuration():
    return DebertaV2Config(
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


def torch_layers():
    """{name: (layer, the shape of its mask)}, all with the weights of the first."""
    eager = DisentangledSelfAttention(configuration())
    layers = {"transformers eager": (eager, lambda batch, length: (batch, 1, length, length))}
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


def torch_run(layer, mask_shape, states, relative, d_output, device="cuda"):
    """A function that runs forward and backward, and returns the output."""
    layer = layer.to(device, torch.bfloat16).train()
    states, relative = (
        torch.tensor(x, dtype=torch.bfloat16, device=device, requires_grad=True)
        for x in (states, relative)
    )
    d_output = torch.tensor(d_output, dtype=torch.bfloat16, device=device)
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


def our_run(eager, states, relative, d_output, interpret=False):
    """The same of our kernels, with the same weights."""
    weights = [
        tuple(
            jnp.asarray(x.detach().float().cpu().numpy().T, jnp.bfloat16)
            for x in (p.weight, p.bias)
        )
        for p in (eager.query_proj, eager.key_proj, eager.value_proj)
    ]
    states, relative, d_output = (
        jnp.asarray(x, jnp.bfloat16) for x in (states, relative, d_output)
    )
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


def median_ms(run, runs=20, warm_up=5):
    times = []
    for _ in range(warm_up + runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[warm_up:])


def inputs(batch, length, seed=0):
    """Hidden states, relative embeddings and the gradient of the output, in float32."""
    rng = np.random.default_rng(seed)
    width = HEADS * HEAD_SIZE
    shapes = (batch, length, width), (2 * POSITIONS["span"], width), (batch, length, width)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def measure(length, layers):
    """Prints a row for each implementation at one length."""
    arrays = inputs(TOKENS // length, length)
    eager = layers["transformers eager"][0]
    runs = {
        name: lambda layer=layer, shape=shape: torch_run(
            layer, shape(TOKENS // length, length), *arrays
        )
        for name, (layer, shape) in layers.items()
    }
    runs["ours"] = lambda: our_run(eager, *arrays)
    theirs, against = None, ("", "")
    for name, make in runs.items():
        try:
            run = make()
            output = run()
            output = np.asarray(output if name == "ours" else output.float().cpu(), np.float32)
            milliseconds = median_ms(run)
        except torch.OutOfMemoryError:
            print(f"| {length} | {name} | out of memory | | |")
            continue
        if name == "transformers eager":
            theirs = output, milliseconds
        if theirs is not None:
            difference = np.abs(output - theirs[0]).max()
            against = f"{theirs[1] / milliseconds:.2f}", f"{difference:.4f}"
        print(f"| {length} | {name} | {milliseconds:.2f} | {' | '.join(against)} |")
        del run
        torch.cuda.empty_cache()


def main():
    if not torch.cuda.is_available() or jax.default_backend() != "gpu":
        sys.exit("This benchmark needs a CUDA GPU that both PyTorch and JAX see.")
    print(f"{torch.cuda.get_device_name()}, JAX {jax.__version__}, PyTorch {torch.__version__}\n")
    layers = torch_layers()
    print("\n| length | implementation | forward + backward, ms | × eager | largest difference |")
    print("|---|---|---|---|---|")
    for length in LENGTHS:
        measure(length, layers)


if __name__ == "__main__":
    main()
