"""Fine-tuning's tokens per second beside `transformers`' Trainer: same model, task and batch.

    python -m benchmarks.finetuning_speed --init=CHECKPOINT --train=sst2/train.tsv

Needs `accelerate`, which the Trainer asks for and nothing else here does: pip install accelerate.

Both train the same classifier (dropout, AdamW, linear schedule, clipping) in float32 on the same
examples: ours in length buckets, as the `finetune` verb does it, the Trainer with its defaults
(rows in random order, each batch padded to its longest). Counted are real tokens, not padding. Each
is a process of its own that the other waits for; the table gives medians over turns of so many
steps, taken alternately, after a first turn in which everything is compiled.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

SEED = np.uint32(0)


def report(seconds: float, tokens: int) -> None:
    """Writes one line of a turn's measurement, for the process that asked for it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    measured = {"seconds": seconds, "tokens": tokens, "peak": peak}
    print(json.dumps(measured), file=sys.stderr, flush=True)


def ours(args, sift_weight=0.0) -> None:
    import jax

    from deberta_jax import objectives, schema
    from deberta_jax.configs.finetune import sst2
    from deberta_jax.parallel import sharding
    from deberta_jax.runs import finetuning
    from deberta_jax.training.program import make_program
    from deberta_jax.training.step_units import StepUnits

    config = sst2.get_config()
    config.train.init = args.init
    config.train.batch_size = args.batch
    config.task.train, config.task.validation = args.train, (args.train,)
    config.task.train_examples = args.examples
    config.task.max_length = args.length
    config.finetune.sift_weight = sift_weight
    session = finetuning.open_session(schema.freeze(config))
    objective = objectives.make(session.config)
    program = make_program(session.config, objective, StepUnits(1, 1, 10**6))
    params = finetuning.initial_params(session, objective, 0)
    state = program.initialize(jax.random.key(0), params)
    batches = session.batches(session.train, 0)
    stream = batches.train()
    mesh, guard = program.mesh, program.guard.initial()
    with sharding.on(mesh):
        compiled = {batch["input_ids"].shape: batch for _, batch in batches.once()}
        for batch in compiled.values():
            rows = sharding.to_devices(batch, mesh)
            state, metrics = program.train_step(state, rows, SEED, guard)
        float(metrics["train/loss"])
        for _ in sys.stdin:
            start, tokens = time.perf_counter(), 0
            for _ in range(args.steps):
                batch = next(stream)
                tokens += int(batch["segment_ids"].sum())
                rows = sharding.to_devices(batch, mesh)
                state, metrics = program.train_step(state, rows, SEED, guard)
            float(metrics["train/loss"])
            report(time.perf_counter() - start, tokens)


def ours_with_sift(args) -> None:
    """What SiFT costs, with one ascent step."""
    ours(args, sift_weight=5.0)


def trainer(args) -> None:
    import numpy as np
    import torch
    import transformers

    from deberta_jax.data.masking import derive_seed
    from deberta_jax.data.tasks.sources import read_rows

    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.init)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        args.init, num_labels=2, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
    )
    rows = read_rows(args.train)
    rng = np.random.default_rng(derive_seed(0, "task examples"))
    if args.examples < len(rows):
        rows = [rows[i] for i in rng.choice(len(rows), args.examples, replace=False)]
    encoded = tokenizer(
        [row.get("sentence") for row in rows], truncation=True, max_length=args.length
    )
    data: Any = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": int(row.get("label"))}
        for ids, row in zip(encoded["input_ids"], rows, strict=True)
    ]
    padded = transformers.DataCollatorWithPadding(tokenizer)
    tokens, steps_of_turn = 0, args.steps

    def collate(examples):
        nonlocal tokens
        tokens += sum(len(example["input_ids"]) for example in examples)
        return padded(examples)

    class Turns(transformers.TrainerCallback):
        """Waits for a request before each turn, and reports it when it is over."""

        steps, start = 0, 0.0

        def on_step_end(self, args, state, control, **kwargs):
            nonlocal tokens
            del args, state, kwargs
            self.steps += 1
            if self.steps % steps_of_turn:
                return
            if self.steps > steps_of_turn:  # the first turn is not measured
                report(time.perf_counter() - self.start, tokens)
            control.should_training_stop = not sys.stdin.readline()
            tokens, self.start = 0, time.perf_counter()

    settings = transformers.TrainingArguments(
        output_dir=str(Path(args.workdir) / "trainer"),
        per_device_train_batch_size=args.batch,
        num_train_epochs=1000,
        learning_rate=2e-5,
        weight_decay=0.01,
        max_grad_norm=1.0,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    torch.set_num_threads(args.threads)
    transformers.Trainer(
        model=model, args=settings, train_dataset=data, data_collator=collate, callbacks=[Turns()]
    ).train()


VARIANTS: dict[str, Callable] = {
    "ours": ours,
    "trainer": trainer,
    "ours_with_sift": ours_with_sift,
}
# The arguments that a variant's process gets.
SHARED = ("init", "train", "workdir", "batch", "steps", "examples", "length", "threads")


class Worker:
    """A process that runs one variant, a turn at a time."""

    def __init__(self, variant: str, args):
        command = [sys.executable, "-m", "benchmarks.finetuning_speed", f"--worker={variant}"]
        command += [f"--{name}={getattr(args, name)}" for name in SHARED]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.requests = cast(IO[str], self.process.stdin)
        self.reports = cast(IO[str], self.process.stderr)
        self.variant = variant

    def turn(self) -> dict[str, float]:
        """The report of one turn; whatever else the process writes is passed over."""
        print("turn", file=self.requests, flush=True)
        written = []
        for line in self.reports:
            if line.startswith('{"seconds"'):
                return json.loads(line)
            written.append(line)
        raise SystemExit(f"{''.join(written)}{self.variant}: ended with {self.process.wait()}")

    def close(self) -> None:
        self.requests.close()
        self.process.wait()


def measure(args) -> dict[str, list[dict[str, float]]]:
    """{variant: [the report of each of its turns]}; only one process is at work at a time."""
    workers = {}
    for name in args.variants:
        workers[name] = Worker(name, args)
        workers[name].turn()
    reports: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for _ in range(args.turns):
        for name, worker in workers.items():
            reports[name].append(worker.turn())
    for worker in workers.values():
        worker.close()
    return reports


def print_tables(reports: dict[str, list[dict[str, float]]]) -> None:
    """Speeds of each variant, and the ratio of the first's to each other one's."""
    speeds = {name: [t["tokens"] / t["seconds"] for t in turns] for name, turns in reports.items()}
    print("| | tokens per second (median) | lowest to highest | peak memory, GiB |")
    print("|---|---|---|---|")
    for name, values in speeds.items():
        print(
            f"| {name} | {statistics.median(values):,.0f} | {min(values):,.0f} to "
            f"{max(values):,.0f} | {reports[name][-1]['peak']:.2f} |"
        )
    first, *others = speeds
    for name in others:
        ratios = [a / b for a, b in zip(speeds[first], speeds[name], strict=True)]
        print(
            f"{first} to {name}, within a turn: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--init", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--workdir", default="runs/finetuning_speed")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--examples", type=int, default=4000)
    parser.add_argument("--length", type=int, default=128, help="longest input, in tokens")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--worker", choices=list(VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        VARIANTS[args.worker](args)
    else:
        print_tables(measure(args))


if __name__ == "__main__":
    main()
