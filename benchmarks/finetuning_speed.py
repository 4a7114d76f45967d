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
from pathlib import Path

import numpy as np

SEED = np.uint32(0)
VARIANTS = ("ours", "trainer", "ours_with_sift")


def tell(seconds: float, tokens: int) -> None:
    """One line of a turn's measurement, for the process that asked for it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    told = {"seconds": seconds, "tokens": tokens, "peak": peak}
    print(json.dumps(told), file=sys.stderr, flush=True)


def ours(arguments, sift_weight=0.0) -> None:
    import jax

    from deberta_jax import objectives, schema
    from deberta_jax.configs.finetune import sst2
    from deberta_jax.parallel import sharding
    from deberta_jax.runs import finetuning
    from deberta_jax.training.program import make_program
    from deberta_jax.training.step_units import StepUnits

    config = sst2.get_config()
    config.train.init = arguments.init
    config.train.batch_size = arguments.batch
    config.task.train, config.task.validation = arguments.train, (arguments.train,)
    config.task.train_examples = arguments.examples
    config.task.max_length = arguments.length
    config.finetune.sift_weight = sift_weight
    session = finetuning.open_session(schema.freeze(config))
    objective = objectives.make(session.config)
    program = make_program(session.config, objective, StepUnits(1, 1, 10**6))
    params = finetuning.initial_params(session, objective, 0)
    state = program.initialize(jax.random.key(0), params)
    batches = session.batches(session.train, 0)
    stream = batches.train()
    mesh = program.mesh
    with sharding.on(mesh):
        compiled = {batch["input_ids"].shape: batch for _, batch in batches.once()}
        for batch in compiled.values():
            state, metrics = program.train_step(state, sharding.to_devices(batch, mesh), SEED)
        float(metrics["train/loss"])
        for _ in sys.stdin:
            start, tokens = time.perf_counter(), 0
            for _ in range(arguments.steps):
                batch = next(stream)
                tokens += int(batch["segment_ids"].sum())
                state, metrics = program.train_step(state, sharding.to_devices(batch, mesh), SEED)
            float(metrics["train/loss"])
            tell(time.perf_counter() - start, tokens)


def ours_with_sift(arguments) -> None:
    """What SiFT costs, with one ascent step."""
    ours(arguments, sift_weight=5.0)


def trainer(arguments) -> None:
    import numpy as np
    import torch
    import transformers

    from deberta_jax.data.masking import derive_seed
    from deberta_jax.data.tasks.sources import read_rows

    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.init)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        arguments.init, num_labels=2, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
    )
    rows = read_rows(arguments.train)
    rng = np.random.default_rng(derive_seed(0, "task examples"))
    rows = [rows[i] for i in rng.choice(len(rows), arguments.examples, replace=False)]
    encoded = tokenizer(
        [row["sentence"] for row in rows], truncation=True, max_length=arguments.length
    )
    data = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": int(row["label"])}
        for ids, row in zip(encoded["input_ids"], rows, strict=True)
    ]
    padded = transformers.DataCollatorWithPadding(tokenizer)
    seen = {"tokens": 0, "steps": 0, "since": None}

    def collate(examples):
        seen["tokens"] += sum(len(example["input_ids"]) for example in examples)
        return padded(examples)

    class Turns(transformers.TrainerCallback):
        """Waits to be asked before each turn, and tells of it when it is over."""

        def on_step_end(self, args, state, control, **rest):
            del args, state, rest
            seen["steps"] += 1
            if seen["steps"] % arguments.steps:
                return
            if seen["since"] is not None:
                tell(time.perf_counter() - seen["since"], seen["tokens"])
            control.should_training_stop = not sys.stdin.readline()
            seen["tokens"], seen["since"] = 0, time.perf_counter()

    settings = transformers.TrainingArguments(
        output_dir=str(Path(arguments.workdir) / "trainer"),
        per_device_train_batch_size=arguments.batch,
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
    torch.set_num_threads(arguments.threads)
    transformers.Trainer(
        model=model, args=settings, train_dataset=data, data_collator=collate, callbacks=[Turns()]
    ).train()


class Worker:
    """A process that runs one variant, a turn at a time."""

    def __init__(self, what, arguments):
        names = ("init", "train", "workdir", "batch", "steps", "examples", "length", "threads")
        command = [sys.executable, "-m", "benchmarks.finetuning_speed", f"--worker={what}"]
        self.process = subprocess.Popen(
            [*command, *(f"--{name}={getattr(arguments, name)}" for name in names)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def turn(self):
        """What one turn told; whatever else the process says is passed by."""
        print("turn", file=self.process.stdin, flush=True)
        said = []
        for line in self.process.stderr:
            if line.startswith('{"seconds"'):
                return json.loads(line)
            said.append(line)
        raise SystemExit(f"{''.join(said)}\n{self.process.args} ended: {self.process.wait()}")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(arguments) -> dict[str, list[dict]]:
    workers = {}
    for name in VARIANTS:
        workers[name] = Worker(name, arguments)
        workers[name].turn()
    told = {name: [] for name in workers}
    for _ in range(arguments.turns):
        for name, worker in workers.items():
            told[name].append(worker.turn())
    for worker in workers.values():
        worker.close()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--init", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--workdir", default="runs/finetuning_speed")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--examples", type=int, default=4000)
    parser.add_argument("--length", type=int, default=128, help="longest input, in tokens")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--worker", choices=VARIANTS)
    arguments = parser.parse_args()
    if arguments.worker:
        globals()[arguments.worker](arguments)
        return
    told = measure(arguments)
    speeds = {name: [t["tokens"] / t["seconds"] for t in turns] for name, turns in told.items()}
    print(
        "| | tokens per second (median) | lowest to highest | peak memory, GiB |\n|---|---|---|---|"
    )
    for name, values in speeds.items():
        print(
            f"| {name} | {statistics.median(values):,.0f} | {min(values):,.0f} to "
            f"{max(values):,.0f} | {told[name][-1]['peak']:.2f} |"
        )
    for name in VARIANTS[1:]:
        ratios = [a / b for a, b in zip(speeds["ours"], speeds[name], strict=True)]
        print(
            f"ours to {name}, within a turn: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
