"""How an auto-regressive model goes on from held-out text."""

import re

import jax
import numpy as np

from deberta_jax.data.dataset import PreparedData
from deberta_jax.data.packed_text import VALIDATION
from deberta_jax.data.tokenizer import FIRST_ORDINARY_ID

PROMPT_TOKENS, NEW_TOKENS = 10, 16


def continuations(logits, params, data: PreparedData, seed: int, count: int) -> list[str]:
    """Beginnings of held-out sentences, what followed, and two ways in which the model goes on.

    One takes the likeliest token each time, the other draws it. Every token computes the text so
    far anew.

    Args:
        logits: (params, batch) -> [B, P, V] at the batch's `masked_positions`, of a causal model.
        params: what it takes.
        data: whose held-out text the beginnings are from.
        seed: of the choice of beginnings, and of what is drawn.
        count: how many beginnings.
    """
    tokenizer, texts = data.tokenizer, _beginnings(data, seed, count)
    if not texts:
        return []
    rows, length = 2 * len(texts), len(texts[0])
    batch = {
        "input_ids": np.full((rows, length), tokenizer.pad_id, np.int32),
        "segment_ids": np.ones((rows, length), np.int32),
        "position_ids": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    }
    prompt = 1 + PROMPT_TOKENS
    ids_BL = batch["input_ids"]
    ids_BL[:, :prompt] = [text[:prompt] for text in texts * 2]
    logits, rng = jax.jit(logits), np.random.default_rng(seed)
    for position in range(prompt, length):
        last_B1 = np.full((rows, 1), position - 1, np.int32)
        logits_BV = logits(params, batch | {"masked_positions": last_B1})[:, 0]
        logits_BV = np.array(logits_BV[:, FIRST_ORDINARY_ID : tokenizer.mask_id], np.float32)
        # The largest of logits with Gumbel noise is a draw from their softmax.
        logits_BV[rows // 2 :] += rng.gumbel(size=(rows // 2, logits_BV.shape[1]))
        ids_BL[:, position] = FIRST_ORDINARY_ID + np.argmax(logits_BV, axis=1)
    lines = []
    for row, text in enumerate(texts):
        lines.append(f"{tokenizer.decode(text[:prompt])} ...")
        ways = ("was", text), ("likeliest", ids_BL[row]), ("drawn", ids_BL[row + rows // 2])
        lines += [f"  {name}: {tokenizer.decode(ids[prompt:])}" for name, ids in ways]
    return lines


def _beginnings(data: PreparedData, seed: int, count: int) -> list[np.ndarray]:
    """[CLS] and the first tokens of sentences from all over the held-out text, of one length."""
    tokenizer, source = data.tokenizer, data.source(VALIDATION)
    length = min(1 + PROMPT_TOKENS + NEW_TOKENS, data.metadata.sequence_length)
    beginnings: list[np.ndarray] = []
    for record in np.random.default_rng(seed).permutation(len(source)):
        if len(beginnings) == count:
            break
        row = source[int(record)]
        text = tokenizer.decode(row["input_ids"][row["segment_ids"] == 1])
        after_sentence = re.split(r"(?<=[.!?])\s+", text, maxsplit=1)[1:]
        ids = tokenizer.encode("".join(after_sentence))[: length - 1]
        if len(ids) == length - 1:
            beginnings.append(np.concatenate([[tokenizer.cls_id], ids]))
    return beginnings
