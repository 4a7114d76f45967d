"""How an auto-regressive model goes on from held-out text."""

import re

import jax
import numpy as np

from deberta_jax.data.packed_text import VALIDATION
from deberta_jax.data.tokenizer import FIRST_ORDINARY_ID
from deberta_jax.runs.opening import Run

PROMPT_TOKENS, NEW_TOKENS = 10, 16


def continuations(run: Run, objective, count: int) -> list[str]:
    """Beginnings of held-out sentences, what followed, and two ways in which the model goes on.

    One takes the likeliest token each time, the other draws it. Every token computes the text so
    far anew.

    Args:
        run: a trained run.
        objective: the run's, or the part of it that has causal `logits`.
        count: how many beginnings.
    """
    tokenizer, texts = run.prepared.tokenizer, _beginnings(run, count)
    if not texts:
        return []
    rows, length = 2 * len(texts), len(texts[0])
    batch = {
        "input_ids": np.full((rows, length), tokenizer.pad_id, np.int32),
        "segment_ids": np.ones((rows, length), np.int32),
        "position_ids": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    }
    given = 1 + PROMPT_TOKENS
    ids_BL = batch["input_ids"]
    ids_BL[:, :given] = [text[:given] for text in texts * 2]
    logits, rng = jax.jit(objective.logits), np.random.default_rng(run.config.seed)
    for place in range(given, length):
        last_B1 = np.full((rows, 1), place - 1, np.int32)
        logits_BV = logits(run.params, batch | {"masked_positions": last_B1})[:, 0]
        logits_BV = np.array(logits_BV[:, FIRST_ORDINARY_ID : tokenizer.mask_id], np.float32)
        # The largest of logits with Gumbel noise is a draw from their softmax.
        logits_BV[rows // 2 :] += rng.gumbel(size=(rows // 2, logits_BV.shape[1]))
        ids_BL[:, place] = FIRST_ORDINARY_ID + np.argmax(logits_BV, axis=1)
    lines = []
    for row, text in enumerate(texts):
        lines.append(f"{tokenizer.decode(text[:given])} ...")
        ways = ("was", text), ("likeliest", ids_BL[row]), ("drawn", ids_BL[row + rows // 2])
        lines += [f"  {name}: {tokenizer.decode(ids[given:])}" for name, ids in ways]
    return lines


def _beginnings(run: Run, count: int) -> list[np.ndarray]:
    """[CLS] and the first tokens of sentences from all over the held-out text, of one length."""
    tokenizer, source = run.prepared.tokenizer, run.prepared.source(VALIDATION)
    length = min(1 + PROMPT_TOKENS + NEW_TOKENS, run.config.data.sequence_length)
    found = []
    for record in np.random.default_rng(run.config.seed).permutation(len(source)):
        if len(found) == count:
            break
        row = source[int(record)]
        text = tokenizer.decode(row["input_ids"][row["segment_ids"] == 1])
        after_sentence = re.split(r"(?<=[.!?])\s+", text, maxsplit=1)[1:]
        ids = tokenizer.encode("".join(after_sentence))[: length - 1]
        if len(ids) == length - 1:
            found.append(np.concatenate([[tokenizer.cls_id], ids]))
    return found
