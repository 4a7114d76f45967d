"""Whole models on the CPU in float32, ours beside `transformers`: encoder, and training step.

    python -m benchmarks.cpu_model encoder --length=512 --batch=1
    python -m benchmarks.cpu_model encoder --length=128 --batch=4
    python -m benchmarks.cpu_model step

encoder: 12 layers of v3 base's geometry, forward and backward without dropout, the same weights in
all; `transformers` both eager and under torch.compile. step: pre-training with 15 % of 512 tokens
masked, a vocabulary of 128,100, dropout and AdamW; ours (masked tokens decoded alone) against the
released algorithm (EMD's two passes over every position, the head at the masked ones).

Every variant is a process of its own, which the others wait for; the table gives medians of steps
taken in turn, ratios within a turn, and the peak resident memory of each process. CPU time is that
of all threads, waiting for each other included.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, cast

import numpy as np

WIDTH, MASKED_SHARE = 768, 0.15
# The comparison of encoders needs no large table: the lookup is not what is measured.
SMALL_VOCABULARY = 1000


def released_config(vocabulary: int, layers: int):
    import transformers

    geometry: dict[str, Any] = dict(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=512,
        type_vocab_size=0,
        layer_norm_eps=1e-7,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type="p2c|c2p",
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    )
    return transformers.DebertaV2Config(**geometry)


def encoder_inputs(args) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, weight of every number of the last hidden state in the loss)."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, SMALL_VOCABULARY, (args.batch, args.length))
    return ids.astype(np.int32), rng.normal(size=(*ids.shape, WIDTH)).astype(np.float32)


def encoder_ours(args):
    import jax
    import jax.numpy as jnp

    import deberta_jax
    from deberta_jax.parallel import host_memory

    host_memory.keep()  # as every verb does
    model, params = deberta_jax.load_pretrained(args.checkpoint)
    model = model.clone(compute=dataclasses.replace(model.compute, unroll=args.layers))
    ids, weight = encoder_inputs(args)

    def loss(params):
        return jnp.sum(model.apply({"params": params}, ids) * weight)

    step = jax.jit(jax.value_and_grad(loss))
    return lambda: float(jax.block_until_ready(step(params))[0])


def encoder_eager(args, compiled=False):
    import torch
    import transformers

    model = transformers.DebertaV2Model.from_pretrained(args.checkpoint).eval()
    run = torch.compile(model) if compiled else model
    ids, weight = map(torch.tensor, encoder_inputs(args))

    def step():
        model.zero_grad()
        loss = (run(ids.long()).last_hidden_state * weight).sum()
        loss.backward()
        return float(loss)

    return step


def encoder_compiled(args):
    return encoder_eager(args, compiled=True)


def masked_batch(args) -> dict[str, np.ndarray]:
    """A batch of our objective's: 15 % of every row's tokens are masked."""
    rng = np.random.default_rng(0)
    shape = (args.batch, args.length)
    masked = round(MASKED_SHARE * args.length)
    rows = [np.sort(rng.choice(shape[1], masked, replace=False)) for _ in range(shape[0])]
    positions = np.array(rows, np.int32)
    return {
        "input_ids": rng.integers(4, args.vocabulary, shape).astype(np.int32),
        "segment_ids": np.ones(shape, np.int32),
        "position_ids": np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
        "masked_positions": positions,
        "masked_labels": rng.integers(4, args.vocabulary, positions.shape).astype(np.int32),
        "masked_weights": np.ones(positions.shape, np.float32),
    }


def step_ours(args):
    import jax

    from deberta_jax import schema
    from deberta_jax.model.config import ModelConfig
    from deberta_jax.objectives.mlm import MaskedLanguageModelling
    from deberta_jax.parallel import host_memory, sharding
    from deberta_jax.training.program import make_program
    from deberta_jax.training.step_units import StepUnits

    host_memory.keep()  # as every verb does
    config = schema.Config()
    train = dataclasses.replace(config.train, batch_size=args.batch)
    config = dataclasses.replace(config, train=train)
    model = ModelConfig(num_hidden_layers=args.layers, vocab_size=args.vocabulary)
    objective = MaskedLanguageModelling(model)
    units = StepUnits(args.batch * args.length, 10**6, 10**6)
    program = make_program(config, objective, units)
    batch = masked_batch(args)
    state, guard = program.initialize(jax.random.key(0), None), program.guard.initial()

    def step():
        nonlocal state
        with sharding.on(program.mesh):
            rows = sharding.to_devices(batch, program.mesh)
            state, metrics = program.train_step(state, rows, np.uint32(0), guard)
        return float(jax.block_until_ready(metrics)["train/loss"])

    return step


def step_released(args):
    import torch
    import transformers

    config = released_config(args.vocabulary, args.layers)
    model = transformers.DebertaV2Model(config).train()
    positions = torch.nn.Embedding(config.max_position_embeddings, config.hidden_size)
    dense = torch.nn.Linear(config.hidden_size, config.hidden_size)
    norm = torch.nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
    bias = torch.nn.Parameter(torch.zeros(args.vocabulary))
    modules = [model, positions, dense, norm]
    parameters = [*(p for module in modules for p in module.parameters()), bias]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, eps=1e-6, weight_decay=0.01)
    batch = {name: torch.tensor(x).long() for name, x in masked_batch(args).items()}
    rows = torch.arange(args.batch)[:, None]

    def loss():
        mask = batch["segment_ids"]
        hidden = model(batch["input_ids"], mask, output_hidden_states=True).hidden_states[-2]
        encoder = model.encoder
        keywords = {
            "attention_mask": encoder.get_attention_mask(mask),
            "relative_pos": encoder.get_rel_pos(hidden),
            "rel_embeddings": encoder.get_rel_embedding(),
        }
        queries = hidden + positions(batch["position_ids"])
        for _ in range(2):
            queries = encoder.layer[-1](hidden, query_states=queries, **keywords)[0]
        queries = queries[rows, batch["masked_positions"]]
        queries = norm(torch.nn.functional.gelu(dense(queries)))
        logits = queries @ model.embeddings.word_embeddings.weight.T + bias
        labels = batch["masked_labels"]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def step():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return float(value)

    return step


# What is compared: functions of the arguments that return `() -> loss`, one step.
VARIANTS: dict[str, dict[str, Callable]] = {
    "encoder": {
        "ours": encoder_ours,
        "eager": encoder_eager,
        "torch.compile": encoder_compiled,
    },
    "step": {"ours": step_ours, "released": step_released},
}
# The arguments that a variant's process gets.
SHARED = ("length", "batch", "layers", "vocabulary", "checkpoint")


def work(args) -> None:
    """A variant's process: one step, and its report, for every line read."""
    step = VARIANTS[args.what][args.worker](args)
    step()
    for _ in sys.stdin:
        clock, cpu = time.perf_counter(), time.process_time()
        loss = step()
        report = {
            "seconds": time.perf_counter() - clock,
            "cpu": time.process_time() - cpu,
            "loss": loss,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        print(json.dumps(report), file=sys.stderr, flush=True)


class Worker:
    """A process that runs one variant, a step at a time."""

    def __init__(self, variant: str, args):
        command = [sys.executable, "-m", "benchmarks.cpu_model", args.what, f"--worker={variant}"]
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
        self.name = f"{args.what}, {variant}"

    def step(self) -> dict[str, float]:
        """The report of one step; whatever else the process writes is passed over."""
        print("step", file=self.requests, flush=True)
        written = []
        for line in self.reports:
            if line.startswith('{"seconds"'):
                return json.loads(line)
            written.append(line)
        raise SystemExit(f"{''.join(written)}{self.name}: ended with {self.process.wait()}")

    def close(self) -> None:
        self.requests.close()
        self.process.wait()


def save_checkpoint(directory: str, layers: int) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.DebertaV2Model(released_config(SMALL_VOCABULARY, layers))
    model.save_pretrained(directory)


def measure(args) -> dict[str, list[dict[str, float]]]:
    """{variant: [the report of each of its steps]}; only one process is at work at a time."""
    with tempfile.TemporaryDirectory() as args.checkpoint:
        if args.what == "encoder":
            save_checkpoint(args.checkpoint, args.layers)
        workers = {}
        for variant in args.variants or VARIANTS[args.what]:
            workers[variant] = Worker(variant, args)
            workers[variant].step()
        reports: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for _ in range(args.repeats):
            for name, worker in workers.items():
                reports[name].append(worker.step())
        for worker in workers.values():
            worker.close()
    return reports


def print_table(args, reports: dict[str, list[dict[str, float]]]) -> None:
    """Medians of each variant; ratios are to the first one, within a turn."""
    first = next(iter(reports))
    print(f"{args.what}, {args.layers} layers, {args.batch} x {args.length}\n")
    print(f"| variant | s | CPU s | tokens/s | {first} is as fast (CPU) | peak memory, GiB |")
    print("|---|---|---|---|---|---|")
    own = np.array([[step["seconds"], step["cpu"]] for step in reports[first]])
    for name, steps in reports.items():
        taken = np.array([[step["seconds"], step["cpu"]] for step in steps])
        wall, cpu = np.median(taken, axis=0)
        ratio, cpu_ratio = np.median(taken / own, axis=0)
        tokens = args.batch * args.length / wall
        print(
            f"| {name} | {wall:.2f} | {cpu:.2f} | {tokens:.0f} | {ratio:.2f} x ({cpu_ratio:.2f} x) "
            f"| {max(step['peak'] for step in steps):.2f} |"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=list(VARIANTS))
    parser.add_argument("--variants", nargs="+", help="ours, eager, torch.compile; ours, released")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=128_100, help="of the step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    known = VARIANTS[args.what]
    if unknown := set(args.variants or ()) - known.keys():
        parser.error(f"--variants: {min(unknown)} is none of {', '.join(known)}")
    if args.worker:
        return work(args)
    reports = measure(args)
    if args.what == "encoder":
        losses = [steps[0]["loss"] for steps in reports.values()]
        np.testing.assert_allclose(losses, losses[0], rtol=1e-3, err_msg="not the same model")
    print_table(args, reports)


if __name__ == "__main__":
    main()
