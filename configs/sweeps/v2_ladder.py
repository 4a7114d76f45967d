"""From v1 to v2 in three steps, each on top of the one before (arXiv 2006.03654).

Shared projections for content and positions; a convolution beside the first layer; a vocabulary of
128,000 pieces. The last rung's tokens are longer, so its loss is of other things: compare it after
fine-tuning. Sizes and commands are those of configs/sweeps/ablation.py.

    python -m deberta_jax.sweep --sweep=configs/sweeps/v2_ladder.py:tiny --workdir=runs/v2_ladder

To expect after fine-tuning: MNLI 86.3/86.2 for v1 (published); the rungs are not yet measured.
"""

from deberta_jax.configs.sweeps import ablation
from deberta_jax.sweeps import product

BASE = "v1"
# v1 has no shared projections, so it is v2 from here on: with a bias of the keys, too.
SHARED: dict[str, object] = {"model.share_att_key": True, "model.model_type": "deberta-v2"}
CONVOLUTION: dict[str, object] = {"model.conv_kernel_size": 3}
# (pieces, rows of the embedding)
VOCABULARY = {"published": (128_000, 128_100), "tiny": (4000, 4032)}


def get_config(size="published"):
    return ablation.get_config(size)


def sweep(size="published"):
    pieces, rows = VOCABULARY[size]
    vocabulary: dict[str, object] = {"data.vocab_size": pieces, "model.vocab_size": rows}
    rungs: list[dict[str, object]] = [
        {"name": "v1"},
        {"name": "shared"} | SHARED,
        {"name": "shared_conv"} | SHARED | CONVOLUTION,
        {"name": "shared_conv_vocabulary"} | SHARED | CONVOLUTION | vocabulary,
    ]
    return product({"seed": (0, 1, 2) if size == "tiny" else (0,)}, rungs)
