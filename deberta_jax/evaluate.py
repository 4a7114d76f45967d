"""Held-out metrics of a run, and examples: python -m deberta_jax.evaluate --workdir=DIR

A masked model fills in words, an auto-regressive one goes on from beginnings of sentences. Where
DIR holds fine-tuned runs, a table of their scores, with the GLUE average where all of its tasks are
there.
"""

import re

import jax
import numpy as np
from absl import flags

from deberta_jax import command
from deberta_jax.data.packed_text import VALIDATION
from deberta_jax.evaluation import result_tables as results
from deberta_jax.evaluation.continuations import continuations
from deberta_jax.objectives.clm import CausalLanguageModelling
from deberta_jax.objectives.mlm import MaskedLanguageModelling
from deberta_jax.runs.opening import Run, open_run
from deberta_jax.runs.pretraining import held_out_batches
from deberta_jax.training.evaluation import make_evaluation

# A sentence for an example: long enough to say something, short enough for one line.
_SENTENCE_WORDS = (8, 22)


def main(parsed) -> None:
    workdir = command.workdir(parsed)
    if results.found_under(workdir):
        print(results.table(workdir))
        return
    run = open_run(workdir)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, run.params)
    evaluate = make_evaluation(run.objective, layouts, run.mesh)
    batches = held_out_batches(run.config, run.prepared, run.mesh)
    metrics = evaluate(run.params, batches())
    print(f"step {run.step}, on held-out documents:")
    for name, value in sorted(metrics.items()):
        print(f"  {name:<22}{value:.4f}")
    gain = metrics["eval/unigram_loss"] - metrics["eval/loss"]
    print(f"  {gain:.2f} nats under the unigram baseline\n")
    for objective in getattr(run.objective, "parts", (run.objective,)):
        for line in _EXAMPLES[type(objective)](run, objective, parsed.examples):
            print(line)


def fill_mask_examples(run: Run, objective, count: int, top: int = 5) -> list[str]:
    """Held-out sentences with one word masked, and what the model would put there.

    Args:
        run: a trained run.
        objective: the run's, or the part of it that has masked `logits`.
        count: how many examples.
        top: guesses shown of each.
    """
    tokenizer, chosen = run.prepared.tokenizer, _masked_sentences(run, count)
    if not chosen:
        return []
    length = run.config.data.sequence_length
    batch = {
        "input_ids": np.full((len(chosen), length), tokenizer.pad_id, np.int32),
        "segment_ids": np.zeros((len(chosen), length), np.int32),
        "position_ids": np.tile(np.arange(length, dtype=np.int32), (len(chosen), 1)),
        "masked_positions": np.array([[place] for _, place in chosen], np.int32),
    }
    for row, (ids, place) in enumerate(chosen):
        batch["input_ids"][row, : len(ids)] = ids
        batch["input_ids"][row, place] = tokenizer.mask_id
        batch["segment_ids"][row, : len(ids)] = 1
    logits_BV = np.asarray(jax.jit(objective.logits)(run.params, batch)[:, 0], np.float32)
    logits_BV = logits_BV[:, : tokenizer.mask_id]  # [MASK] and spare rows are no guesses
    lines = []
    for (ids, place), logits_V in zip(chosen, logits_BV, strict=True):
        shares_V = np.exp(logits_V - logits_V.max())
        shares_V /= shares_V.sum()
        guesses = ", ".join(
            f"{tokenizer.decode([token])} {100 * shares_V[token]:.0f}%"
            for token in np.argsort(-logits_V)[:top]
        )
        before, after = tokenizer.decode(ids[1:place]), tokenizer.decode(ids[place + 1 : -1])
        lines.append(f"{before} [MASK] {after}\n  was: {tokenizer.decode([ids[place]])}")
        lines[-1] += f"; guesses: {guesses}"
    return lines


def _masked_sentences(run: Run, count: int):
    """(ids with [CLS] and [SEP], place of a one-token word), from all over the held-out text."""
    tokenizer, source = run.prepared.tokenizer, run.prepared.source(VALIDATION)
    rng, found = np.random.default_rng(run.config.seed), []
    for record in rng.permutation(len(source)):
        if len(found) == count:
            break
        row = source[int(record)]
        text = tokenizer.decode(row["input_ids"][row["segment_ids"] == 1][1:-1])
        sentences = re.split(r"(?<=[.!?])\s+", text)[1:-1]  # the outer ones may be cut
        fitting = [s for s in sentences if _fits(len(s.split()))]
        if not fitting:
            continue
        words = tokenizer.encode(fitting[rng.integers(len(fitting))])
        ids = np.concatenate([[tokenizer.cls_id], words, [tokenizer.sep_id]])
        starts = np.append(tokenizer.word_start_V[ids[1:]], True)
        whole = [
            place
            for place in range(1, len(ids) - 1)
            if tokenizer.word_start_V[ids[place]]
            and (starts[place] or place == len(ids) - 2)
            and len(tokenizer.decode([ids[place]])) > 2
        ]
        if whole and len(ids) <= run.config.data.sequence_length:
            found.append((ids, whole[rng.integers(len(whole))]))
    return found


def _fits(words: int) -> bool:
    return _SENTENCE_WORDS[0] <= words <= _SENTENCE_WORDS[1]


# What shows how each objective's model guesses.
_EXAMPLES = {
    MaskedLanguageModelling: fill_mask_examples,
    CausalLanguageModelling: continuations,
}

if __name__ == "__main__":
    flags.DEFINE_integer("examples", 8, "Examples to show, of each kind.", lower_bound=0)
    command.run(main, needs_config=False)
