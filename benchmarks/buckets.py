"""A run in a bucket beside the same run on a disk, on an emulator of Google's storage.

    python -m benchmarks.buckets input [--steps=300] [--runs=3]
    python -m benchmarks.buckets kill [--processes=2] [--kills=3]

`input`: the quickstart's steps, how long they wait for input, and how often the bucket is read for
each record. `kill`: a run in a bucket is killed (SIGKILL, all its processes) at random
moments, continued each time, and compared with a run on the disk that nothing interrupts. Each
prints its table of docs/storage.md as Markdown.

The emulator (fake-gcs-server) answers from this machine, in less time than a real bucket.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

import deberta_jax
from deberta_jax import recipes, storage
from deberta_jax.training.metrics import read_metrics
from tests.buckets.servers import BUCKET, GcsServer

ROOT = Path(__file__).parents[1]


def reads(requests: Sequence[str], part: str) -> int:
    """How many reads of objects the server's log has whose names hold `part`."""
    return sum("GET " in line and "alt=media" in line and part in line for line in requests)


def waits(workdir: storage.PathLike) -> list[float]:
    """The share of each report's step time that was spent waiting for input."""
    lines = read_metrics(storage.as_path(workdir))
    return [
        x["perf/input_seconds"] / x["perf/step_seconds"] for x in lines if "perf/step_seconds" in x
    ]


def measure_input(server: GcsServer, steps: int, runs: int) -> None:
    config = recipes.load("quickstart").unlock()
    config.train.duration, config.train.log_every = f"{steps} steps", "10 steps"
    config.train.eval_every = config.train.checkpoint_every = f"{steps} steps"
    config.train.eval_batches = 1
    config.lock()
    rows = []
    with tempfile.TemporaryDirectory() as disk:
        for place in (f"gs://{BUCKET}", disk):
            config.data.dir = f"{place}/data"
            deberta_jax.prepare(config, place)
            shares, counts = [], []
            for number in range(runs):
                before = len(server.requests)
                deberta_jax.train(config, f"{place}/run_{number}")
                shares.append(statistics.median(waits(f"{place}/run_{number}")))
                counts.append(reads(server.requests[before:], "train.array_record"))
            where = "gs://, emulator" if place != disk else "disk"
            wait = f"{100 * statistics.median(shares):.2f} %"
            # A few batches more than steps are read ahead.
            each = statistics.median(counts) / (steps * config.train.batch_size)
            rows.append([where, wait, f"{each:.2f}" if place != disk else ""])
    print("| where | waiting for input | reads of the bucket for each record used |")
    print("|---|--:|--:|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def run(processes: int, workdir: str, data: str, kill_after: float | None = None) -> bool:
    """Trains the tests' tiny recipe, to the end or until it is killed; whether it was."""
    words = [
        "bash", "launch/multiprocess.sh", str(processes), "train", "--config=tests/tiny_recipe.py",
        f"--config.data.dir={data}", f"--workdir={workdir}",
        "--config.train.duration=200 steps", "--config.train.checkpoint_every=10 steps",
        "--config.train.eval_every=100 steps", "--config.train.log_every=10 steps",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as logs:
        environment = os.environ | {
            "DEVICES": "1", "LOGS": logs, "PYTHON": sys.executable,
            "JAX_COMPILATION_CACHE_DIR": f"gs://{BUCKET}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        }  # fmt: skip
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            status = process.wait(kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
    if status:
        raise SystemExit(f"the run ended with status {status}")
    return False


def measure_kills(processes: int, kills: int) -> None:
    config = recipes.load("tests/tiny_recipe.py").unlock()
    data = config.data.dir = f"gs://{BUCKET}/data"
    deberta_jax.prepare(config.lock(), f"gs://{BUCKET}/run")
    with tempfile.TemporaryDirectory() as disk:
        started = time.monotonic()
        run(processes, f"{disk}/run", data)
        whole, draw, killed = time.monotonic() - started, random.Random(), 0
        while killed < kills and run(
            processes, f"gs://{BUCKET}/run", data, draw.uniform(0.3, 1.0) * whole
        ):
            killed += 1
        run(processes, f"gs://{BUCKET}/run", data)
        runs = [deberta_jax.open_run(path) for path in (f"gs://{BUCKET}/run", f"{disk}/run")]
        pairs = zip(*(jax.tree.leaves(one.params) for one in runs), strict=True)
        equal = all(np.array_equal(ours, theirs) for ours, theirs in pairs)
    cached = len(storage.files(f"gs://{BUCKET}/compiled/*"))
    print(
        "| processes | kills | steps | parameters | programs in the cache |\n|--:|--:|--:|---|--:|"
    )
    print(
        f"| {processes} | {killed} | {runs[0].step} | {'equal' if equal else 'DIFFER'} | {cached} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("input", "kill"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3)
    chosen = parser.parse_args(arguments)
    with GcsServer() as server:
        if chosen.what == "input":
            measure_input(server, chosen.steps, chosen.runs)
        else:
            measure_kills(chosen.processes, chosen.kills)


if __name__ == "__main__":
    main()
