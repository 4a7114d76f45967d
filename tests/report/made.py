"""Runs made up for a test: their metrics written as a run writes them."""

import json
import random
from pathlib import Path

from deberta_jax.report.sweep_results import DONE, FAILED, Result


def make_run(workdir: Path, seed: int, level: float, steps=(2, 4, 6)) -> dict[str, float]:
    """Writes metrics.jsonl; returns the last held-out metrics."""
    draw = random.Random(f"{workdir.name} {seed}")
    lines, metrics = [], {}
    for step in steps:
        metrics = {
            "eval/loss": level + 1 / step + draw.gauss(0, 0.1),
            "eval/mlm_accuracy": draw.random(),
            "eval/unigram_loss": 6.0,
        }
        train = {"train/loss": level, "optim/grad_norm": 1.0, "perf/tokens_per_second": 1e4}
        lines += [{"step": step} | train, {"step": step} | metrics]
    (workdir / "tensorboard").mkdir(parents=True)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return metrics


def make_sweep(directory: Path, seed: int) -> list[Result]:
    """Three variants of two or three seeds, one run of which has failed."""
    found = []
    for level, variant in enumerate(("plain", "better", "<b>odd</b>"), 3):
        for repetition in range(3):
            name = f"v{level}_s{repetition}"
            changes = {} if variant == "plain" else {"model.pos_att_type": ("c2p",) * (level - 4)}
            failed = variant == "better" and repetition == 2
            metrics = make_run(directory / "runs" / name, seed + repetition, level)
            found.append(
                Result(
                    name,
                    variant,
                    repetition,
                    changes | {"seed": repetition},
                    directory / "runs" / name,
                    FAILED if failed else DONE,
                    6,
                    {} if failed else metrics,
                    "exit status 2\nerror: <no> such & thing" if failed else "",
                )
            )
    return found
