"""The paper's table 10 in small: perplexities of four auto-regressive models at equal tokens.

    python benchmarks/causal.py --corpus=TRAIN.jsonl --validation_corpus=VALID.jsonl \
        --workdir=runs/causal

RoBERTa-like (absolute positions at the input, plain attention), DeBERTa-AP (the same positions,
disentangled attention), DeBERTa (absolute positions in EMD instead) and DeBERTa-MT (masked
modelling besides), three seeds each, of 2 layers of width 64 and 2,000 pieces. Every run is an
ordinary run of the `train` verb; run again, the script goes on from where it stood. It prints the
table as Markdown.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

AT_THE_INPUT = "--config.model.position_biased_input=True"
MODELS = {
    "RoBERTa-like": ["--config.model.pos_att_type=()", AT_THE_INPUT],
    "DeBERTa-AP": [AT_THE_INPUT],
    "DeBERTa": [],
    "DeBERTa-MT": ["--config.objective=mlm_clm", "--config.model.causal=False"],
}
PIECES, BATCH = 2000, 8
SIZES = dict(vocab_size=PIECES + 16, hidden_size=64, num_hidden_layers=2, intermediate_size=256)


def verb(name, *arguments):
    command = [sys.executable, "-m", f"deberta_jax.{name}", "--config=configs/quickstart_clm.py"]
    subprocess.run([*command, f"--config.data.vocab_size={PIECES}", *arguments], check=True)


def run(model, seed, arguments) -> dict:
    """Trains one model with one seed, unless it is done already; returns its held-out metrics."""
    workdir = Path(arguments.workdir) / f"{model}_{seed}"
    verb(
        "train",
        f"--workdir={workdir}",
        f"--config.data.dir={arguments.workdir}/data",
        *(f"--config.model.{name}={size}" for name, size in SIZES.items()),
        f"--config.train.batch_size={BATCH}",
        f"--config.train.duration={arguments.duration}",
        "--config.train.eval_every=0",
        "--config.train.checkpoint_every=50%",
        f"--config.train.eval_batches={arguments.eval_batches}",
        f"--config.optimizer.learning_rate={arguments.learning_rate}",
        f"--config.seed={seed}",
        *MODELS[model],
    )
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval/loss" in line][-1]


def table(runs, tokens_per_step) -> str:
    rows = ["| model | perplexity | nats under unigram | tokens |", "|---|---|---|---|"]
    for model, lines in runs.items():
        perplexities = [line["eval/perplexity"] for line in lines]
        prefix = "eval/clm_" if "eval/clm_loss" in lines[0] else "eval/"
        under = [line[f"{prefix}unigram_loss"] - line[f"{prefix}loss"] for line in lines]
        tokens = lines[0]["step"] * tokens_per_step / 1e6
        rows.append(f"| {model} | {spread(perplexities, 1)} | {spread(under, 3)} | {tokens:.2f}M |")
    return "\n".join(rows)


def spread(values, digits: int) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--validation_corpus", required=True)
    parser.add_argument("--workdir", default="runs/causal")
    parser.add_argument("--duration", default="1000 steps")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--eval_batches", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    verb(
        "prepare",
        f"--workdir={arguments.workdir}",
        f"--config.data.corpus={arguments.corpus}",
        "--config.data.tokenizer_sentences=50_000",
        f"--config.data.validation_corpus={arguments.validation_corpus}",
    )
    metadata = json.loads((Path(arguments.workdir) / "data" / "metadata.json").read_text())
    train = metadata["splits"]["train"]
    tokens_per_step = BATCH * train["positions"] / train["sequences"]
    runs = {model: [] for model in MODELS}
    for seed in range(arguments.seeds):  # seeds outermost: an early look compares like with like
        for model, lines in runs.items():
            lines.append(run(model, seed, arguments))
        print(table(runs, tokens_per_step), flush=True)


if __name__ == "__main__":
    main()
