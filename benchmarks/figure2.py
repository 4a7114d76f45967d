"""Attention maps of a small DeBERTa and of its RoBERTa-like twin: the paper's Figure 2.

    python benchmarks/figure2.py --corpus=TRAIN.jsonl --validation_corpus=VALID.jsonl \
        --workdir=runs/figure2 --out=docs/images

Both have the quickstart's sizes and see the same batches; the twin has absolute positions in its
input and plain attention. Every run is one of `deberta_jax.train`, every picture one of the `plot`
verb; run again, the script continues where it stopped. It prints what share of the attention falls
where, over held-out text, as Markdown.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import deberta_jax
from deberta_jax import recipes
from deberta_jax.model import inspection
from deberta_jax.report.opened_models import OpenedModel, open_model, sequences

SENTENCE = (
    "The old man looked at the sea for a long time, and then he said that he would not go home."
)
SEQUENCES = 64
# What differs from the recipe.
MODELS: dict[str, dict[str, Any]] = {
    "DeBERTa": {},
    "RoBERTa-like": {"model.pos_att_type": (), "model.position_biased_input": True},
}


def configured(args, **fields):
    """The recipe with the text that the command line names."""
    config = recipes.load(args.config)
    config.data.corpus = args.corpus
    config.data.validation_corpus = args.validation_corpus
    config.data.dir = f"{args.workdir}/data"
    config.update_from_flattened_dict(fields)
    return config


def train(model: str, args) -> Path:
    """Trains one model, unless it is done already; returns its workdir."""
    workdir = Path(args.workdir) / model.lower()
    fields = {
        "train.duration": args.duration,
        "train.batch_size": args.batch_size,
        "train.eval_every": "5%",
        "train.checkpoint_every": "10%",
        "train.eval_batches": 50,
        "train.norms_every": "1%",
        "optimizer.learning_rate": 1e-3,
    }
    if deberta_jax.train(configured(args, **fields, **MODELS[model]), workdir) is None:
        sys.exit(f"{workdir}: stopped; the same command continues")
    return workdir


def shares(workdir: Path, count: int) -> list[dict[str, float]]:
    """Where the attention of each layer falls: means over heads, words and held-out sequences.

    "strip" is the word that the others look at most: its share of their attention, of each sequence
    the largest.
    """
    model = open_model(workdir)
    rows = [list(of_layers(model, *sequence)) for sequence in sequences(model, None, count)]
    return [
        {name: float(np.mean([row[layer][name] for row in rows])) for name in rows[0][layer]}
        for layer in range(model.config.num_hidden_layers)
    ]


def of_layers(model: OpenedModel, ids_L, segments_L) -> Iterator[dict[str, float]]:
    """The shares of one sequence, layer by layer."""
    heads = tuple(range(model.config.num_attention_heads))
    ids_BL, segments_BL = ids_L[None], segments_L[None]
    for layer in inspection.layer_inputs(model.config, model.params, ids_BL, segments_BL):
        scores = inspection.attention_scores(model.config, layer, heads)
        probabilities = inspection.attention_probabilities(model.config, scores, segments_BL)
        mean_QK = np.asarray(probabilities)[0].mean(axis=0)
        yield of_words(model.tokenizer, ids_L, segments_L, mean_QK)


def of_words(tokenizer, ids_L, segments_L, mean_QK) -> dict[str, float]:
    """The shares of the words' attention, a mean of heads."""
    words = ids_L > tokenizer.unk_id
    of_words = mean_QK[words]
    others = np.where(np.eye(len(words), dtype=bool), 0, mean_QK)[words][:, words]
    positions = np.flatnonzero(words)
    sides = [mean_QK[positions[1:], positions[1:] - 1], mean_QK[positions[:-1], positions[:-1] + 1]]
    seen_Q = (segments_L == segments_L[:, None]).sum(axis=1)
    return {
        "the word itself": mean_QK[positions, positions].mean(),
        "a neighbour": sum(side.mean() for side in sides),
        "[CLS]": of_words[:, ids_L == tokenizer.cls_id].sum(axis=1).mean(),
        "[SEP]": of_words[:, ids_L == tokenizer.sep_id].sum(axis=1).mean(),
        "strip": others.mean(axis=0).max(),
        "uniform": (1 / seen_Q)[words].mean(),
    }


def table(runs: dict[str, Path], count: int) -> str:
    measured = {model: shares(workdir, count) for model, workdir in runs.items()}
    names = list(next(iter(measured.values()))[0])
    lines = [f"| model | layer | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for model, layers in measured.items():
        for number, layer in enumerate(layers, 1):
            values = " | ".join(f"{100 * layer[name]:.1f} %" for name in names)
            lines.append(f"| {model} | {number} | {values} |")
    return "\n".join(lines)


# The words after `plot`; {all} is every run, {deberta} the one of DeBERTa.
PICTURES = {
    "figure2": ("attention", "--checkpoint={all}", f"--sentence={SENTENCE}", "--head=mean"),
    "attention_parts": ("attention", "--checkpoint={deberta}", f"--sentence={SENTENCE}"),
    "position_profiles": ("profiles", "--checkpoint={deberta}"),
    "two_runs": ("curves", "--workdir={all}", "--label={labels}"),
    "norms": ("norms", "--workdir={deberta}"),
}


def draw(name: str, runs: dict[str, Path], out: Path) -> None:
    names = {
        "all": ",".join(map(str, runs.values())),
        "deberta": str(runs["DeBERTa"]),
        "labels": ",".join(runs),
    }
    words = [word.format(**names) for word in PICTURES[name]]
    command = [sys.executable, "-m", "deberta_jax.plot", *words, f"--out={out / name}.png"]
    subprocess.run(command, check=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--validation_corpus", required=True)
    parser.add_argument("--workdir", default="runs/figure2")
    parser.add_argument("--out", default="docs/images")
    parser.add_argument("--config", default="quickstart", help="the recipe of the models")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--duration", default="2000 steps")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=SEQUENCES)
    parser.add_argument("--pictures", nargs="*", default=list(PICTURES), choices=list(PICTURES))
    args = parser.parse_args(argv)
    if args.pictures and "DeBERTa" not in args.models:
        parser.error("--pictures are of DeBERTa, which --models leaves out")
    deberta_jax.prepare(configured(args), args.workdir)
    runs = {model: train(model, args) for model in args.models}
    print(table(runs, args.sequences))
    for name in args.pictures:
        draw(name, runs, Path(args.out))


if __name__ == "__main__":
    main()
