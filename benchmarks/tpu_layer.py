"""What disentangled attention costs on a TPU: one layer, forward and backward, against BERT's.

    python -m benchmarks.tpu_layer [--chip v5e] [--widths base large xxlarge] [--dropout 0.1]

It needs no TPU: each program is compiled for the chip, and the compiler's own cycles are added up
(`deberta_jax.estimates.cost`). Every row is this project's `Layer` under `jax.vjp`: 32 x 512
tokens, bfloat16 compute, float32 parameters; the gradients are of the parameters, the input and
the relative embeddings. BERT is the layer without a disentangled term, attending by JAX's
`dot_product_attention` (XLA), or its kernels flash and splash, or ours; JAX's drop no attention
probability, so with dropout they do less.
MFU: three times the forward FLOPs of `model.flops.layer_flops`, over the chip's bf16 peak.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import flash_attention as flash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

from deberta_jax.errors import UserError
from deberta_jax.estimates.cost import Estimate, estimate_function, prepare
from deberta_jax.model.attention import DisentangledSelfAttention
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.encoder import Layer
from deberta_jax.model.flops import layer_flops
from deberta_jax.parallel.chips import CHIPS, chip_named

BATCH, LENGTH = 32, 512
WIDTHS = {"base": (768, 12), "large": (1024, 16), "xxlarge": (1536, 24)}
V1: dict[str, Any] = dict(
    model_type="deberta", share_att_key=False, norm_rel_ebd="none", position_buckets=0
)
BERT: dict[str, Any] = dict(pos_att_type=(), position_biased_input=True)


def configs(
    width: str, dropout: float = 0.0, attention: str = "auto", remat: str = "none", **fields
) -> tuple[ModelConfig, ComputeConfig]:
    """A model of that width in bfloat16."""
    hidden_size, heads = WIDTHS[width]
    model = ModelConfig(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **fields,
    )
    return model, ComputeConfig(dtype="bfloat16", attention=attention, remat=remat)


def xla_attention(query_BHLD, key_BHLD, value_BHLD, segments_BL):
    """As JAX has it: whole scores, masked."""
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query_BHLD, key_BHLD, value_BHLD))
    mask = segments_BL[:, None, :, None] == segments_BL[:, None, None, :]
    output = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")
    return jnp.swapaxes(output, 1, 2)


def flash_attention(query_BHLD, key_BHLD, value_BHLD, segments_BL, block: int):
    """The scale is applied to the queries, as its backward pass expects."""
    blocks = flash.BlockSizes(
        block, block, block, 1, block, block, block, block, block, block, block
    )
    return flash.flash_attention(
        query_BHLD,
        key_BHLD,
        value_BHLD,
        segment_ids=flash.SegmentIds(segments_BL, segments_BL),
        sm_scale=query_BHLD.shape[-1] ** -0.5,
        block_sizes=blocks,
    )


def splash_attention(query_BHLD, key_BHLD, value_BHLD, segments_BL, block: int):
    _, heads, length, size = query_BHLD.shape
    blocks = splash.BlockSizes(block, block, block, block, block, block, use_fused_bwd_kernel=True)
    attend = splash.make_splash_mha_single_device(
        np.ones((heads, length, length), bool), block_sizes=blocks
    )
    query_BHLD *= jnp.asarray(size**-0.5, query_BHLD.dtype)
    return jax.vmap(attend)(
        query_BHLD, key_BHLD, value_BHLD, splash.SegmentIds(segments_BL, segments_BL)
    )


def with_attention(attend: Callable):
    """Has every module attend by `attend(query, key, value [B, H, L, D], segments)` instead."""

    def intercept(next_function, args, options, context):
        module = context.module
        own = isinstance(module, DisentangledSelfAttention) and context.method_name == "__call__"
        # The decoder's few queries stand at arbitrary positions; no such kernel takes them.
        if not own or (len(args) > 4 and args[4] is not None):
            return next_function(*args, **options)
        hidden_BLE, segments_BL = args[:2]
        projected = jnp.einsum("BLE,ECHD->CBHLD", hidden_BLE, module.qkv_kernel)
        query, key, value = projected + module.qkv_bias[:, None, :, None]
        return attend(query, key, value, segments_BL).swapaxes(1, 2)

    return nn.intercept_methods(intercept)


def layer_program(
    config: ModelConfig,
    compute: ComputeConfig,
    deterministic: bool,
    attend: Callable | None = None,
) -> tuple[Callable, tuple]:
    """(function, arguments): a layer's output and gradients."""
    layer = Layer(config, compute, deterministic)
    wide = jax.ShapeDtypeStruct((BATCH, LENGTH, config.hidden_size), jnp.bfloat16)
    rows = jax.ShapeDtypeStruct((2 * config.relative_span, config.hidden_size), jnp.bfloat16)
    segments_BL = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl="rbg")))
    relative = rows if config.pos_att_type else None

    def initialize(hidden_BLE, segments_BL, relative_RE):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        return nn.unbox(layer.init(rngs, hidden_BLE, segments_BL, relative_RE))["params"]

    params = jax.eval_shape(initialize, wide, segments_BL, relative)

    def gradients(params, hidden_BLE, relative_RE, segments_BL, key, cotangent_BLE):
        def forward(params, hidden_BLE, relative_RE):
            rngs = {"dropout": jax.random.wrap_key_data(key, impl="rbg")}
            return layer.apply({"params": params}, hidden_BLE, segments_BL, relative_RE, rngs=rngs)

        def run():
            output_BLE, backward = jax.vjp(forward, params, hidden_BLE, relative_RE)
            return output_BLE, backward(cotangent_BLE)

        if attend is None:
            return run()
        with with_attention(attend):
            return run()

    return gradients, (params, wide, relative, segments_BL, key, wide)


BASELINE, FLASH = "BERT, XLA attention", "BERT, flash"
# label: (fields of the model, attention in place of the model's own)
ROWS: dict[str, tuple[dict[str, Any], Callable | None]] = {
    BASELINE: (BERT, xla_attention),
    f"{FLASH} attention, blocks of 256": (BERT, functools.partial(flash_attention, block=256)),
    f"{FLASH} attention, blocks of 512": (BERT, functools.partial(flash_attention, block=512)),
    f"{FLASH} (splash), blocks of 512": (BERT, functools.partial(splash_attention, block=512)),
    "BERT, our kernel": (BERT | dict(attention="tpu"), None),
    "v1, XLA attention": (V1 | dict(attention="xla"), None),
    "v1, our kernel": (V1 | dict(attention="tpu"), None),
    "v3, XLA attention": (dict(attention="xla"), None),
    "v3, our kernel": (dict(attention="tpu"), None),
}


def megacycles(estimate: Estimate) -> list[float]:
    """Of kernels, of matmuls, of all other instructions, and their sum."""
    by_kind = estimate.cycles_by_kind
    parts = [by_kind.pop("kernel"), by_kind.pop("matmul"), sum(by_kind.values()), estimate.cycles]
    return [cycles / 1e6 for cycles in parts]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chip", default="v5e", choices=list(CHIPS))
    parser.add_argument("--widths", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--only", default="", help="rows whose label contains this")
    parser.add_argument("--details", action="store_true", help="print the costliest instructions")
    args = parser.parse_args(argv)
    prepare()
    print(
        "| layer | kernels | matmuls | other | Mcycles | ms | x BERT, XLA | x BERT, best flash "
        "| MFU | gathers, scatters |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for width in args.widths:
        measured: dict[str, float] = {}
        for label in ROWS:
            if args.only in label:
                print_row(width, label, measured, args)


def print_row(width: str, label: str, measured: dict[str, float], args) -> None:
    """Adds the row's cycles to `measured`, by label, and prints its line of the table."""
    title, (fields, attend) = f"{width}: {label}", ROWS[label]
    try:
        config, compute = configs(width, args.dropout, **fields)
        function, operands = layer_program(config, compute, args.dropout == 0, attend)
        estimate = estimate_function(function, operands, args.chip)
    except (UserError, jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        print(f"| {title} | {str(error).splitlines()[0][:200]} |")
        return
    measured[label] = estimate.cycles
    flash_rows = [cycles for name, cycles in measured.items() if name.startswith(FLASH)]
    flops = 3 * BATCH * layer_flops(config, LENGTH, LENGTH)
    cells = [f"{cycles:.3f}" for cycles in megacycles(estimate)]
    cells.append(f"{estimate.seconds * 1e3:.3f}")
    for reference in (measured.get(BASELINE), min(flash_rows, default=None)):
        cells.append(f"{estimate.cycles / reference:.3f}" if reference else "-")
    cells.append(f"{flops / estimate.seconds / chip_named(args.chip).peak_flops:.1%}")
    cells.append(f"{estimate.counts['gather']}, {estimate.counts['scatter']}")
    print(f"| {title} | {' | '.join(cells)} |", flush=True)
    if args.details:
        print(estimate.describe())


if __name__ == "__main__":
    main()
