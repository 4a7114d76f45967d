"""What a whole pre-training step costs on a TPU chip: DeBERTa's against BERT's.

    python -m benchmarks.tpu_step [--chip v5e] [--layers 12] [--only v3]

It needs no TPU (see `benchmarks.tpu_layer`). The step is the one that the training loop runs:
32 x 512 tokens on one chip, masked-LM with the 80 predictions a sequence that recipes make room for
(76.8 are wanted), base width, the layers under one scan, dropout, AdamW, the state donated. DeBERTa
decodes with EMD; BERT has absolute positions, no disentangled term, no EMD, and JAX's flash
attention (without dropout of the probabilities) in all layers but the last, which runs for the
targets only.
MFU: the model FLOPs of `model.flops.masked_lm_flops`, over the chip's bf16 peak.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import jax

from benchmarks.tpu_layer import (
    BATCH,
    BERT,
    LENGTH,
    V1,
    configs,
    flash_attention,
    megacycles,
    with_attention,
)
from deberta_jax import objectives
from deberta_jax.data.config import DataConfig, MaskingConfig
from deberta_jax.data.masking import num_predictions
from deberta_jax.errors import UserError
from deberta_jax.estimates.cost import estimate_lowered, prepare, tpu_devices
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.flops import masked_lm_flops
from deberta_jax.parallel.chips import CHIPS, chip_named
from deberta_jax.runs import compilation
from deberta_jax.schema import Config
from deberta_jax.training.config import TrainConfig

PREDICTIONS = num_predictions(MaskingConfig(), LENGTH)
FLASH = functools.partial(flash_attention, block=512)
# label: (fields of the model, attention in place of the model's own)
ROWS: dict[str, tuple[dict[str, Any], Callable | None]] = {
    "BERT, flash attention": (BERT, FLASH),
    "BERT, XLA attention": (BERT | dict(attention="xla"), None),
    "BERT, our kernel": (BERT | dict(attention="tpu"), None),
    "v1, our kernel": (V1 | dict(attention="tpu"), None),
    "v3, our kernel": (dict(attention="tpu"), None),
    "v3, XLA attention": (dict(attention="xla"), None),
}


def lower_step(
    config: ModelConfig,
    compute: ComputeConfig,
    device: jax.Device,
    attend: Callable | None = None,
) -> jax.stages.Lowered:
    """The training step of one chip, not yet compiled."""
    run = Config(
        model=config,
        compute=compute,
        data=DataConfig(sequence_length=LENGTH),
        train=TrainConfig(batch_size=BATCH),
    )
    objective = objectives.make(run)
    program = compilation.program_for(run, [device], objective)
    with with_attention(attend) if attend else nullcontext():
        return compilation.lower_step(run, program, objective)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chip", default="v5e", choices=list(CHIPS))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--remat", default="none", choices=["none", "dots", "full"])
    parser.add_argument("--only", default="", help="rows whose label contains this")
    parser.add_argument("--details", action="store_true", help="print the costliest instructions")
    args = parser.parse_args(argv)
    prepare()
    print(
        "| step | kernels | matmuls | other | Mcycles | ms | tokens/s | x BERT, flash | MFU "
        "| HBM, GB | gathers, scatters |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    baseline = None
    for label in ROWS:
        if args.only in label:
            cycles = print_row(label, baseline, args)
            baseline = baseline or cycles


def print_row(label: str, baseline: float | None, args) -> float | None:
    """Prints the row's line of the table; returns its cycles."""
    fields, attend = ROWS[label]
    try:
        config, compute = configs("base", 0.1, remat=args.remat, **fields)
        config = dataclasses.replace(config, num_hidden_layers=args.layers)
        estimate = estimate_lowered(
            lower_step(config, compute, tpu_devices(args.chip)[0], attend), args.chip
        )
    except (UserError, jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        print(f"| {label} | {str(error).splitlines()[0][:200]} |")
        return None
    tokens = BATCH * LENGTH
    flops = masked_lm_flops(config, LENGTH, PREDICTIONS) * BATCH
    cells = [f"{cycles:.2f}" for cycles in megacycles(estimate)]
    cells += [f"{estimate.seconds * 1e3:.1f}", f"{tokens / estimate.seconds:,.0f}"]
    cells.append(f"{estimate.cycles / baseline:.3f}" if baseline else "1.000")
    cells.append(f"{flops / estimate.seconds / chip_named(args.chip).peak_flops:.1%}")
    cells.append(f"{(estimate.argument_bytes + estimate.temp_bytes) / 1e9:.2f}")
    cells.append(f"{estimate.counts['gather']}, {estimate.counts['scatter']}")
    print(f"| {label} | {' | '.join(cells)} |", flush=True)
    if args.details:
        print(estimate.describe(20))
    return estimate.cycles


if __name__ == "__main__":
    main()
