"""Learning curves of three small models at equal tokens: what each part of DeBERTa brings.

    python benchmarks/learning_curves.py --corpus=TRAIN.jsonl --validation_corpus=VALID.jsonl \
        --workdir=runs/learning_curves --out=docs/images/learning_curves.png

BERT-like (absolute positions in the input, plain attention), disentangled attention without the
Enhanced Mask Decoder, and DeBERTa in full, three seeds each, with the quickstart's sizes. Every run
is an ordinary run of `deberta_jax.train`; run again, the script continues where it stopped. It
prints the table as Markdown and draws the curves.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import deberta_jax
from deberta_jax import recipes

# What differs from the recipe.
MODELS: dict[str, dict[str, Any]] = {
    "BERT-like": {"model.pos_att_type": (), "model.position_biased_input": True},
    "disentangled, no EMD": {"model.enhanced_mask_decoder": False},
    "DeBERTa": {},
}
# The largest peak at which all three learn: at 2e-3 the BERT-like model stays at the unigram loss.
LEARNING_RATE = 1e-3
COLOURS = {"BERT-like": "C7", "disentangled, no EMD": "C0", "DeBERTa": "C3"}
# The held-out lines of a run's metrics.
Curve = list[dict[str, float]]


def configured(args, **fields):
    """The recipe with the text that the command line names."""
    config = recipes.load(args.config)
    config.data.corpus = args.corpus
    config.data.validation_corpus = args.validation_corpus
    config.data.dir = f"{args.workdir}/data"
    config.update_from_flattened_dict(fields)
    return config


def run(model: str, seed: int, args) -> Path:
    """Trains one model with one seed, unless it is done already; returns its workdir."""
    name = model.lower().replace(", ", "_").replace(" ", "_")
    workdir = Path(args.workdir) / f"{name}_{seed}"
    fields = {
        "train.duration": args.duration,
        "train.eval_every": "5%",
        "train.checkpoint_every": "25%",
        "train.eval_batches": args.eval_batches,
        "optimizer.learning_rate": LEARNING_RATE,
        "seed": seed,
    }
    if deberta_jax.train(configured(args, **fields, **MODELS[model]), workdir) is None:
        sys.exit(f"{workdir}: stopped; the same command continues")
    return workdir


def curve(workdir: Path) -> Curve:
    """The held-out lines of a run."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval/loss" in line]


def table(runs: dict[str, list[Curve]], tokens_per_step: float) -> str:
    rows = [
        "| model | held-out loss | held-out accuracy | nats under unigram | tokens |",
        "|---|---|---|---|---|",
    ]
    for model, curves in runs.items():
        last = [lines[-1] for lines in curves]
        loss, accuracy = ([line[f"eval/{n}"] for line in last] for n in ("loss", "mlm_accuracy"))
        under = [line["eval/unigram_loss"] - line["eval/loss"] for line in last]
        rows.append(
            f"| {model} | {spread(loss)} | {spread(accuracy)} | {spread(under)} "
            f"| {last[0]['step'] * tokens_per_step / 1e6:.1f}M |"
        )
    return "\n".join(rows)


def spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def draw(runs: dict[str, list[Curve]], tokens_per_step: float, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for model, curves in runs.items():
        for index, lines in enumerate(curves):
            millions = [line["step"] * tokens_per_step / 1e6 for line in lines]
            losses = [line["eval/loss"] for line in lines]
            label = f"{model} ({len(curves)} seeds)" if index == 0 else None
            axis.plot(millions, losses, color=COLOURS[model], alpha=0.8, label=label)
    baseline = next(iter(runs.values()))[0][-1]["eval/unigram_loss"]
    axis.axhline(baseline, color="black", linestyle="--", linewidth=1, label="unigram baseline")
    axis.set_xlabel("tokens (millions)")
    axis.set_ylabel("held-out masked-LM loss (nats)")
    axis.grid(alpha=0.3)
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--validation_corpus", required=True)
    parser.add_argument("--workdir", default="runs/learning_curves")
    parser.add_argument("--out", default="docs/images/learning_curves.png")
    parser.add_argument("--config", default="quickstart", help="the recipe of all models")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--duration", default="1500 steps")
    parser.add_argument("--eval_batches", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    config = configured(args)
    train = deberta_jax.prepare(config, args.workdir).splits["train"]
    tokens_per_step = config.train.batch_size * train.positions / train.sequences
    runs: dict[str, list[Curve]] = {model: [] for model in args.models}
    for seed in range(args.seeds):  # seeds outermost: an early look compares like with like
        for model, curves in runs.items():
            curves.append(curve(run(model, seed, args)))
        print(table(runs, tokens_per_step), flush=True)
        draw(runs, tokens_per_step, Path(args.out))


if __name__ == "__main__":
    main()
