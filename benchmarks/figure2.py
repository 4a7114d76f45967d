"""Attention maps of a small DeBERTa and of its RoBERTa-like twin: the paper's Figure 2.

    python benchmarks/figure2.py --corpus=TRAIN.jsonl --validation_corpus=VALID.jsonl \
        --workdir=runs/figure2 --out=docs/images

Both have the quickstart's sizes and see the same batches; the twin has absolute positions in its
input and plain attention. Every run is one of the `train` verb, every picture one of the `plot`
verb; run again, the script goes on from where it stood. It prints what share of the attention falls
where, over held-out text, as Markdown.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from deberta_jax.data.packed_text import VALIDATION
from deberta_jax.model import inspection
from deberta_jax.report.opened_models import open_model

SENTENCE = (
    "The old man looked at the sea for a long time, and then he said that he would not go home."
)
SEQUENCES = 64
MODELS = {
    "DeBERTa": [],
    "RoBERTa-like": ["--config.model.pos_att_type=()", "--config.model.position_biased_input=True"],
}
RECIPE = "--config=configs/quickstart.py"


def verb(name, *arguments):
    subprocess.run([sys.executable, "-m", f"deberta_jax.{name}", *arguments], check=True)


def train(model: str, arguments) -> Path:
    """Trains one model, unless it is done already; returns its workdir."""
    workdir = Path(arguments.workdir) / model.lower()
    verb(
        "train",
        RECIPE,
        f"--workdir={workdir}",
        f"--config.data.dir={arguments.workdir}/data",
        f"--config.train.duration={arguments.duration}",
        f"--config.train.batch_size={arguments.batch_size}",
        "--config.train.eval_every=5%",
        "--config.train.checkpoint_every=10%",
        "--config.train.eval_batches=50",
        "--config.optimizer.learning_rate=1e-3",
        *MODELS[model],
    )
    return workdir


def shares(workdir: Path) -> list[dict[str, float]]:
    """Where the attention of each layer falls: means over heads, words and held-out sequences.

    "strip" is the word that the others look at most: its share of their attention, of each sequence
    the largest.
    """
    model = open_model(workdir)
    tokenizer, rows = model.tokenizer, []
    heads = tuple(range(model.config.num_attention_heads))
    source = model.run.prepared.source(VALIDATION)
    for record in source.__getitems__(list(range(SEQUENCES))):
        ids, segments = record["input_ids"][None], record["segment_ids"].astype(np.int32)[None]
        words = ids[0] > tokenizer.unk_id
        layers = []
        for given in inspection.layer_inputs(model.config, model.params, ids, segments):
            scores = inspection.attention_scores(model.config, given, heads)
            probabilities = inspection.attention_probabilities(model.config, scores, segments)
            mean_QK = np.asarray(probabilities)[0].mean(axis=0)
            of_words = mean_QK[words]
            others = np.where(np.eye(len(words), dtype=bool), 0, mean_QK)[words][:, words]
            places = np.flatnonzero(words)
            sides = [mean_QK[places[1:], places[1:] - 1], mean_QK[places[:-1], places[:-1] + 1]]
            layers.append(
                {
                    "the word itself": mean_QK[places, places].mean(),
                    "a neighbour": sum(side.mean() for side in sides),
                    "[CLS]": of_words[:, ids[0] == tokenizer.cls_id].sum(axis=1).mean(),
                    "[SEP]": of_words[:, ids[0] == tokenizer.sep_id].sum(axis=1).mean(),
                    "strip": others.mean(axis=0).max(),
                    "uniform": (1 / (segments[0] == segments[0][:, None]).sum(axis=1))[
                        words
                    ].mean(),
                }
            )
        rows.append(layers)
    return [
        {name: float(np.mean([row[layer][name] for row in rows])) for name in rows[0][layer]}
        for layer in range(model.config.num_hidden_layers)
    ]


def table(runs: dict[str, Path]) -> str:
    measured = {model: shares(workdir) for model, workdir in runs.items()}
    names = list(next(iter(measured.values()))[0])
    lines = [f"| model | layer | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for model, layers in measured.items():
        for number, layer in enumerate(layers, 1):
            values = " | ".join(f"{100 * layer[name]:.1f} %" for name in names)
            lines.append(f"| {model} | {number} | {values} |")
    return "\n".join(lines)


def draw(runs: dict[str, Path], out: Path) -> None:
    both, deberta = ",".join(map(str, runs.values())), runs["DeBERTa"]
    sentence = f"--sentence={SENTENCE}"
    pictures = {
        "figure2": ("attention", f"--checkpoint={both}", sentence, "--head=mean"),
        "attention_parts": ("attention", f"--checkpoint={deberta}", sentence),
        "position_profiles": ("profiles", f"--checkpoint={deberta}"),
        "two_runs": ("curves", f"--workdir={both}", f"--label={','.join(runs)}"),
        "norms": ("norms", f"--workdir={deberta}"),
    }
    for name, arguments in pictures.items():
        verb("plot", *arguments, f"--out={out / name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--validation_corpus", required=True)
    parser.add_argument("--workdir", default="runs/figure2")
    parser.add_argument("--out", default="docs/images")
    parser.add_argument("--duration", default="2000 steps")
    parser.add_argument("--batch_size", type=int, default=8)
    arguments = parser.parse_args()
    verb(
        "prepare",
        RECIPE,
        f"--workdir={arguments.workdir}",
        f"--config.data.corpus={arguments.corpus}",
        f"--config.data.validation_corpus={arguments.validation_corpus}",
    )
    runs = {model: train(model, arguments) for model in MODELS}
    print(table(runs))
    draw(runs, Path(arguments.out))


if __name__ == "__main__":
    main()
