"""What pre-training brings: four tasks from a small pre-trained checkpoint and from random weights.

    python -m deberta_jax.prepare --config=configs/quickstart.py --workdir=runs/books \
        --config.data.corpus=TRAIN.jsonl --config.data.validation_corpus=VALID.jsonl
    python -m deberta_jax.train   (the same, with --config.train.duration="8000 steps")
    python benchmarks/finetuning.py --data=DATA --init=runs/books --workdir=runs/finetuning

DATA holds sst2/{train,dev}.tsv and rte/{train,dev}.tsv as GLUE has them, two files of SQuAD's form
squad/{train,dev}*.json, and mctest/mc500.{train,dev}.{tsv,ans}. Every run is one of
`deberta_jax.finetune`, three seeds each; both beginnings have the same architecture, tokenizer,
examples, learning rate and number of steps. Run again, the script continues where it stopped. It
prints the table.
"""

import argparse
import collections
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

import deberta_jax
from deberta_jax import recipes

# Examples, epochs and lengths are cut so that all 24 runs take under an hour on two CPU cores.
COMMON = {"optimizer.learning_rate": 1e-3, "optimizer.warmup": "10%", "train.eval_every": "0"}
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {
        "task.train_examples": 6000,
        "task.max_length": 64,
        "train.duration": "3 epochs",
    },
    "rte": {
        "task.train_examples": 0,
        "task.max_length": 96,
        "train.duration": "2 epochs",
    },
    "squad": {
        "task.train_examples": 800,
        "task.max_length": 128,
        "task.stride": 32,
        "task.max_question_length": 24,
        "train.duration": "2 epochs",
        "train.batch_size": 16,
    },
    "mctest": {
        "task.train_examples": 600,
        "task.max_length": 128,
        "train.duration": "2 epochs",
        "train.batch_size": 8,
    },
}
BEGINNINGS = {"pretrained": False, "random": True}
SQUAD_QUESTIONS = 300


def files(task: str, data: Path, workdir: Path) -> tuple[Path, Path]:
    """(training examples, those to measure on)."""
    if task == "mctest":
        return data / "mctest/mc500.train.tsv", data / "mctest/mc500.dev.tsv"
    if task == "squad":
        (train,) = (data / "squad").glob("train*.json")
        (dev,) = (data / "squad").glob("dev*.json")
        return train, first_questions(dev, workdir / "squad_dev.json")
    return data / task / "train.tsv", data / task / "dev.tsv"


def first_questions(source: Path, target: Path) -> Path:
    """Every so many questions of a file of SQuAD's, SQUAD_QUESTIONS in all."""
    articles = json.loads(source.read_text())["data"]
    paragraphs = [p for article in articles for p in article["paragraphs"]]
    total = sum(len(p["qas"]) for p in paragraphs)
    chosen = {round(index * total / SQUAD_QUESTIONS) for index in range(SQUAD_QUESTIONS)}
    kept, number = [], 0
    for paragraph in paragraphs:
        asked = [q for i, q in enumerate(paragraph["qas"], start=number) if i in chosen]
        number += len(paragraph["qas"])
        if asked:
            kept.append({"context": paragraph["context"], "qas": asked})
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"data": [{"title": "", "paragraphs": kept}]}))
    return target


def run(task: str, beginning: str, args) -> dict:
    """The results of a task's seeds from one beginning."""
    workdir = Path(args.workdir) / f"{task}_{beginning}"
    if not (workdir / "results.json").exists():
        train, dev = files(task, Path(args.data), Path(args.workdir))
        config = recipes.load(f"finetune/{task}")
        config.task.train, config.task.validation = str(train), (str(dev),)
        config.finetune.fresh_weights = BEGINNINGS[beginning]
        config.update_from_flattened_dict(COMMON | TASKS[task])
        if deberta_jax.finetune(config, workdir, init=args.init, seeds=args.seeds) is None:
            sys.exit(f"{workdir}: stopped; the same command continues")
    return json.loads((workdir / "results.json").read_text())


def majority(task: str, workdir: Path) -> str:
    """What always giving the commonest label scores; nothing for questions."""
    path = workdir / f"{task}_pretrained/seed_0/predictions/validation.jsonl"
    labels = [json.loads(line).get("label") for line in path.read_text().splitlines()]
    if None in labels:
        return "–"
    return f"{100 * max(collections.Counter(labels).values()) / len(labels):.1f}"


def rows(task: str, args) -> list[str]:
    """The task's lines of the table, one for each score."""
    results = {beginning: run(task, beginning, args) for beginning in BEGINNINGS}
    lines = []
    for score in results["random"]["summary"]:
        if score.endswith(("loss", "threshold")):
            continue
        cells = [
            f"{100 * values['summary'][score]['mean']:.1f} ± "
            f"{100 * values['summary'][score]['std']:.1f}"
            for values in results.values()
        ]
        cells.append(majority(task, Path(args.workdir)))
        lines.append(f"| {task} | {score.removeprefix('eval/')} | {' | '.join(cells)} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--init", required=True)
    parser.add_argument("--workdir", default="runs/finetuning")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # All seeds, and both beginnings, run one program.
        cache = Path(args.workdir).absolute() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    print(
        "| task | score | pre-trained | random weights | commonest label |\n|---|---|---|---|---|"
    )
    for task in args.tasks.split(","):
        print("\n".join(rows(task, args)), flush=True)


if __name__ == "__main__":
    main()
