"""The paper's table 10 in small: perplexities of four auto-regressive models at equal tokens.

    python benchmarks/causal.py --corpus=TRAIN.jsonl --validation_corpus=VALID.jsonl \
        --workdir=runs/causal

RoBERTa-like (absolute positions at the input, plain attention), DeBERTa-AP (the same positions,
disentangled attention), DeBERTa (absolute positions in EMD instead) and DeBERTa-MT (masked
modelling besides), three seeds each, of 2 layers of width 64 and 2,000 pieces. Every run is an
ordinary run of `deberta_jax.train`; run again, the script continues where it stopped. It prints the
table as Markdown.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deberta_jax
from deberta_jax import recipes

# What differs from the recipe.
MODELS: dict[str, dict[str, Any]] = {
    "RoBERTa-like": {"model.pos_att_type": (), "model.position_biased_input": True},
    "DeBERTa-AP": {"model.position_biased_input": True},
    "DeBERTa": {},
    "DeBERTa-MT": {"objective": "mlm_clm", "model.causal": False},
}
BATCH = 8


def configured(args, **fields):
    """The recipe with the text and the sizes that the command line names."""
    config = recipes.load("quickstart_clm")
    config.data.corpus = args.corpus
    config.data.validation_corpus = args.validation_corpus
    config.data.dir = f"{args.workdir}/data"
    config.data.vocab_size = args.pieces
    config.data.tokenizer_sentences = 50_000
    config.model.vocab_size = args.pieces + 16
    config.model.hidden_size = args.width
    config.model.num_hidden_layers = args.layers
    config.model.intermediate_size = 4 * args.width
    config.train.batch_size = BATCH
    config.update_from_flattened_dict(fields)
    return config


def run(model: str, seed: int, args) -> dict[str, float]:
    """Trains one model with one seed, unless it is done already; returns its held-out metrics."""
    workdir = Path(args.workdir) / f"{model}_{seed}"
    fields = {
        "train.duration": args.duration,
        "train.eval_every": "0",
        "train.checkpoint_every": "50%",
        "train.eval_batches": args.eval_batches,
        "optimizer.learning_rate": args.learning_rate,
        "seed": seed,
    }
    if deberta_jax.train(configured(args, **fields, **MODELS[model]), workdir) is None:
        sys.exit(f"{workdir}: stopped; the same command continues")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval/loss" in line][-1]


def table(runs: dict[str, list[dict[str, float]]], tokens_per_step: float) -> str:
    rows = ["| model | perplexity | nats under unigram | tokens |", "|---|---|---|---|"]
    for model, lines in runs.items():
        perplexities = [line["eval/perplexity"] for line in lines]
        prefix = "eval/clm_" if "eval/clm_loss" in lines[0] else "eval/"
        under = [line[f"{prefix}unigram_loss"] - line[f"{prefix}loss"] for line in lines]
        tokens = lines[0]["step"] * tokens_per_step / 1e6
        rows.append(f"| {model} | {spread(perplexities, 1)} | {spread(under, 3)} | {tokens:.2f}M |")
    return "\n".join(rows)


def spread(values: Sequence[float], digits: int) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--validation_corpus", required=True)
    parser.add_argument("--workdir", default="runs/causal")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--pieces", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--duration", default="1000 steps")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--eval_batches", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    train = deberta_jax.prepare(configured(args), args.workdir).splits["train"]
    tokens_per_step = BATCH * train.positions / train.sequences
    runs: dict[str, list[dict[str, float]]] = {model: [] for model in args.models}
    for seed in range(args.seeds):  # seeds outermost: an early look compares like with like
        for model, lines in runs.items():
            lines.append(run(model, seed, args))
        print(table(runs, tokens_per_step), flush=True)


if __name__ == "__main__":
    main()
