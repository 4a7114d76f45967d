"""Fine-tuning assembled from its config: a session reads all once, each seed is a run."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from deberta_jax import objectives, schema
from deberta_jax.data.masking import derive_seed
from deberta_jax.data.tasks import TASKS, scores
from deberta_jax.data.tasks.batches import Batches, choose_lengths
from deberta_jax.data.tasks.encoded import Encoded
from deberta_jax.data.tasks.sources import Row, named_sources, read_rows
from deberta_jax.errors import UserError
from deberta_jax.evaluation import finetuning_scores as results
from deberta_jax.interop import pretrained
from deberta_jax.interop.tokenizers import PretrainedTokenizer
from deberta_jax.model.config import ModelConfig
from deberta_jax.parallel.sharding import local_rows
from deberta_jax.runs import identity
from deberta_jax.runs.directories import CONFIG, Kind, recognise
from deberta_jax.runs.loading import open_checkpoint, tokenizer_of
from deberta_jax.runs.opening import TOKENIZER
from deberta_jax.runs.pretraining import claim_workdir
from deberta_jax.schema import Config
from deberta_jax.training import loop
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.evaluation import make_prediction
from deberta_jax.training.program import TrainProgram, make_program
from deberta_jax.training.step_units import StepUnits

# The heads that fine-tuning makes anew where a checkpoint has none.
_NEW = ("pooler.", "classifier.", "qa_outputs.")
_OTHER_WORKDIR = "name another --workdir, or remove this one to learn anew"


class Session(NamedTuple):
    """What all seeds of a task share.

    Attributes:
        config: with the checkpoint's architecture, the labels and the best metric filled in.
        tensors: the checkpoint's, under released names.
        tokenizer: the checkpoint's.
        task: what is learned (`data.tasks`).
        train: the examples to learn from.
        validation: those to measure on, by the set's name; "" where there is one only.
        test: those to predict.
        lengths: what batches are padded to.
        identity: digests of the checkpoint and of the examples.
    """

    config: Config
    tensors: dict[str, np.ndarray]
    tokenizer: PretrainedTokenizer
    task: Any
    train: Encoded
    validation: dict[str, Encoded]
    test: dict[str, Encoded]
    lengths: tuple[int, ...]
    identity: dict[str, Any]

    def batches(self, given: Encoded, seed: int = 0) -> Batches:
        return Batches(
            given.items,
            self.lengths,
            self.config.train.batch_size,
            self.tokenizer.pad_id,
            seed,
        )


def open_session(config: Config) -> Session:
    """Reads the checkpoint and the examples.

    Raises:
        UserError: something is missing, or does not fit; before anything is written.
    """
    if config.objective not in TASKS:
        known = ", ".join(map(repr, TASKS))
        raise UserError(f"objective is {config.objective!r}; fine-tuning's are {known}")
    if not config.train.init:
        raise UserError("--init is missing; it names a checkpoint, or the workdir of a run")
    for field in ("train", "validation"):
        if not getattr(config.task, field):
            raise UserError(f"task.{field} is empty; it names the examples (a file, or tfds:...)")
    scores.check(config.objective, config.task.scores)
    (stated, tensors), _ = open_checkpoint(config.train.init, "finetune")
    tokenizer = tokenizer_of(config.train.init)
    _check_limits(config, stated, tokenizer)
    rows, counts = _read(config, config.task.train)
    task: Any = TASKS[config.objective](config.task, tokenizer, rows)
    if 0 < config.task.train_examples < len(rows):
        rng = np.random.default_rng(derive_seed(config.data.seed, "task examples"))
        chosen = rng.choice(len(rows), config.task.train_examples, replace=False)
        rows = [rows[index] for index in np.sort(chosen)]
    train = task.encode(rows, training=True)
    train.counts.update(counts)
    if not train.items:
        raise UserError(f"{config.task.train}: no example is left to learn from")
    validation = {
        name: _encoded(task, config, source, labelled=True)
        for name, source in named_sources(config.task.validation, "task.validation")
    }
    test = {
        name: _encoded(task, config, source, labelled=False)
        for name, source in named_sources(config.task.test, "task.test")
    }
    everything = [train, *validation.values(), *test.values()]
    sizes = [item["input_ids"].shape[-1] for given in everything for item in given.items]
    lengths = choose_lengths(sizes, config.task.buckets)
    session = Session(
        _resolved(config, stated, task, validation),
        tensors, tokenizer, task, train, validation, test, lengths,
        identity.of_examples(tensors, tokenizer.pieces, _named(train, validation, test)),
    )  # fmt: skip
    if jax.process_index() == 0:
        print(_described(session))
    return session


def _check_limits(config: Config, stated: ModelConfig, tokenizer) -> None:
    if tokenizer.vocab_size > stated.vocab_size:
        raise UserError(
            f"{config.train.init}: the tokenizer has {tokenizer.vocab_size} tokens, the model's "
            f"table {stated.vocab_size} rows; they have to belong together"
        )
    limit, asked = stated.max_position_embeddings, config.task.max_length
    if stated.position_biased_input and asked > limit:
        raise UserError(f"task.max_length is {asked}; this model's inputs end at {limit} tokens")
    if asked < 8:
        raise UserError(f"task.max_length is {asked}; it must be at least 8")


def _read(config: Config, source: str) -> tuple[list[Row], Counter[str]]:
    """The rows of a source, and what was passed over while it was read."""
    task, counts = config.task, Counter[str]()
    rows = read_rows(
        source,
        task.header,
        file_format=task.format,
        uneven_rows=task.uneven_rows,
        counts=counts,
    )
    return rows, counts


def _encoded(task, config: Config, source: str, labelled: bool) -> Encoded:
    """A set to measure, or else to predict.

    Raises:
        UserError: as `read_rows` and the task's `encode`, or no example is left.
    """
    rows, counts = _read(config, source)
    encoded = task.encode(rows, training=False, labelled=labelled)
    encoded.counts.update(counts)
    if not encoded.items:
        raise UserError(f"{source}: no example is left")
    return encoded


def _resolved(config: Config, stated: ModelConfig, task, validation) -> Config:
    """The config with what the checkpoint and the examples decide."""
    measured = [_metric(name, s) for name in validation for s in (*config.task.scores, "loss")]
    settings = config.train
    if not settings.best_metric:
        settings = dataclasses.replace(settings, best_metric=measured[0])
    if settings.best_metric not in measured:
        raise UserError(
            f"train.best_metric is {settings.best_metric!r}; measured are {', '.join(measured)}"
        )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **stated.architecture()),
        train=settings,
        task=dataclasses.replace(config.task, labels=task.stated_labels or config.task.labels),
    )


def _metric(name: str, score: str) -> str:
    """The name of a score of a set of examples; a single set has no name."""
    return "/".join(part for part in ("eval", name, score) if part)


def _described(session: Session) -> str:
    """What was read, what was left out or cut, and what batches are padded to."""
    lines = []
    for name, given in _named(session.train, session.validation, session.test):
        counts = "; ".join(f"{what}: {count:,}" for what, count in given.counts.items() if count)
        lines.append(f"{name}: {len(given.examples):,} examples" + f" ({counts})" * bool(counts))
    batches = session.batches(session.train)
    rows = session.train.items[0]["input_ids"].size // session.train.items[0]["input_ids"].shape[-1]
    whole = batches.per_epoch * session.config.train.batch_size * rows * session.lengths[-1]
    padding, single = (
        1 - _tokens(session.train) / places for places in (batches.padded_tokens(), whole)
    )
    lines.append(
        f"inputs are padded to {', '.join(map(str, session.lengths))} tokens, each compiled once: "
        f"{padding:.0%} of the tokens are padding ({single:.0%} with one length)"
    )
    best, names = session.config.train.best_metric, session.task.label_names
    meaning = scores.meaning(best.rpartition("/")[2], names) if names else ""
    direction = "lowest" if best.endswith("loss") else "highest"
    lines.append(
        f"the best checkpoint has the {direction} {best}" + f" ({meaning})" * bool(meaning)
    )
    settings = session.config.finetune
    if settings.sift_weight:
        lines.append(
            f"SiFT, {settings.sift_steps} ascent step(s): a step runs the model forward and back "
            f"{settings.sift_steps + 2} times instead of once"
        )
    return "\n".join(lines)


def _named(train: Encoded, validation: dict[str, Encoded], test: dict[str, Encoded]):
    """(name, examples) of every set."""
    yield "train", train
    for kind, sets in (("validation", validation), ("test", test)):
        for name, given in sets.items():
            yield f"{kind} {name}".strip(), given


def _tokens(given: Encoded) -> int:
    return sum(int(item["segment_ids"].sum()) for item in given.items)


def finetune_seed(session: Session, seed: int, workdir: Path) -> dict[str, float] | None:
    """Learns the task with one seed; returns the best checkpoint's scores, None if told to stop.

    Raises:
        UserError: it was learned or begun already with other settings, from another checkpoint or
            from other examples.
    """
    config = dataclasses.replace(session.config, seed=seed)
    if (done := results.read(workdir)) is not None:
        if changed := schema.differences(schema.load(workdir / "config.json"), config):
            raise UserError(
                f"{workdir} holds results of other settings ({'; '.join(changed)}); name another "
                "--workdir"
            )
        identity.check(workdir, session.identity, _OTHER_WORKDIR)
        return done
    objective = objectives.make(config)
    batches = session.batches(session.train, seed)
    tokens = _tokens(session.train) / batches.per_epoch
    units = StepUnits(tokens, batches.per_epoch)
    units = units.with_total("train.duration", config.train.duration)
    program = make_program(config, objective, units)
    _check_batch_size(config, workdir)
    begins = recognise(workdir).kind is not Kind.FINETUNED
    begin = _beginning(session, objective, seed, begins)
    if not begins:
        identity.check(workdir, session.identity, _OTHER_WORKDIR)
    claim_workdir(config, workdir)
    identity.keep(workdir, session.identity, anew=begins)
    if jax.process_index() == 0:
        session.tokenizer.save(workdir / TOKENIZER)
    rows = local_rows(config.train.batch_size, program.mesh)
    outputs = make_outputs(session, objective, program, rows)
    mean_length = _tokens(session.train) / len(session.train.items)
    batch_size = config.train.batch_size
    trained = loop.train(
        program,
        lambda sample: batches.train(sample // batch_size, rows),
        lambda params: measure(session, objective, outputs, params)[0],
        config=config.train,
        profile=config.profile,
        seed=seed,
        workdir=workdir,
        flops_per_token=objective.flops_per_token(round(mean_length)),
        initial_params=begin,
    )
    if trained is None:
        return None
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step, params = checkpoints.restore_params(program.abstract.params, checkpoints.best())
    measured, predictions = measure(session, objective, outputs, params)
    found = {("validation", name): lines for name, lines in predictions.items()}
    name, given = next(iter(session.validation.items()))
    tuned = session.task.tuned(predictions[name], given.examples)
    for name, given in session.test.items():
        logits, _ = outputs(params, given)
        found["test", name] = tuned.predictions(logits, given)
    if jax.process_index() == 0:
        write_predictions(session, found, workdir)
        results.write_one(workdir, step, measured)
    return measured


def _beginning(session: Session, objective, seed: int, begins: bool) -> Callable | None:
    """`() -> parameters` to begin with; None for random ones.

    Raises:
        UserError: the run begins now, and the checkpoint does not fit: before anything is written.
    """
    if session.config.finetune.fresh_weights:
        return None
    first = functools.partial(initial_params, session, objective, seed)
    return [first()].pop if begins else first  # handed over once: the host keeps no copy


def _check_batch_size(config: Config, workdir: Path) -> None:
    """Raises `UserError` where a run was begun with another batch size: batches are put together by
    length, so that a position among them means nothing in others."""
    path = workdir / CONFIG
    asked = config.train.batch_size
    if path.exists() and (begun := schema.load(path).train.batch_size) != asked:
        raise UserError(
            f"train.batch_size is {asked}, but {workdir} was started with {begun}; fine-tuning "
            "goes on with the same, or in another --workdir"
        )


def initial_params(session: Session, objective, seed: int):
    """The checkpoint's parameters under the task's head, which is new where it has no such head."""
    wanted = pretrained.shapes(objective.model)
    tensors = {
        name: x for name, x in session.tensors.items() if wanted.get(name, x.shape) == x.shape
    }
    if dropped := sorted(session.tensors.keys() - tensors.keys()):
        print(f"of another number of labels, made anew: {', '.join(dropped)}")
    return pretrained.from_state_dict(objective.model, tensors, new=_NEW, seed=seed)


def measure(session: Session, objective, outputs, params):
    """(metrics, predictions by set) on the validation sets."""
    metrics, predictions = {}, {}
    for name, given in session.validation.items():
        logits, sums = outputs(params, given)
        found = session.task.predictions(logits, given)
        weights = {"items": sum(float(item["weights"].sum()) for item in given.items)}
        metrics[_metric(name, "loss")] = float(objective.summarize(sums, weights)["loss"])
        for score, value in session.task.score(found, given.examples).items():
            metrics[_metric(name, score)] = value
        predictions[name] = found
    return metrics, predictions


def make_outputs(
    session: Session, objective, program: TrainProgram, rows: Sequence[range]
) -> Callable:
    """`(params, examples) -> (logits of each item, sums over all of them)`; we have `rows`."""
    layouts = jax.tree.map(lambda leaf: leaf.sharding, program.abstract.params)
    predict = make_prediction(objective, layouts, program.mesh)

    def outputs(params, given: Encoded):
        logits, sums = [None] * len(given.items), None
        for group, found in predict(params, session.batches(given).once(rows)):
            for item, row in zip(group, found["logits"], strict=False):
                logits[item] = row
            sums = found["sums"] if sums is None else jax.tree.map(np.add, sums, found["sums"])
        return logits, sums

    return outputs


def write_predictions(session: Session, found: dict, workdir: Path) -> None:
    """Writes `predictions/SET.jsonl` of every validation and test set, an example a line."""
    for (kind, name), predictions in found.items():
        path = workdir / "predictions" / f"{'_'.join(filter(None, (kind, name)))}.jsonl"
        results.write_lines(path, getattr(session, kind)[name].examples, predictions)
