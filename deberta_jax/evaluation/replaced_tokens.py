"""Held-out sentences with a word that a generator replaced, and how a discriminator judges them."""

import jax
import numpy as np

from deberta_jax.data.dataset import PreparedData
from deberta_jax.evaluation.fill_mask import masked_batch


def replaced_token_examples(
    logits, detect, params, data: PreparedData, seed: int, count: int
) -> list[str]:
    """A line for each sentence with one word replaced, and one with the likeliest replacements.

    Args:
        logits: the generator: (params, batch) -> [B, P, V] at the batch's `masked_positions`.
        detect: the discriminator: (params, batch) -> [B, L], the logit that a token was replaced.
        params: what both take.
        data: whose held-out text the sentences are from.
        seed: of the choice of sentences, and of the replacements.
        count: how many.
    """
    tokenizer, rng = data.tokenizer, np.random.default_rng(seed)
    batch, chosen = masked_batch(data, rng, count)
    if not chosen:
        return []
    logits_BV = np.asarray(jax.jit(logits)(params, batch)[:, 0], np.float64)
    logits_BV = logits_BV[:, : tokenizer.mask_id]
    sampled_B = (logits_BV + rng.gumbel(size=logits_BV.shape)).argmax(-1)
    for row, (_, position) in enumerate(chosen):
        batch["input_ids"][row, position] = sampled_B[row]
    chance_BL = jax.nn.sigmoid(np.asarray(jax.jit(detect)(params, batch), np.float32))
    lines = []
    for row, (ids, position) in enumerate(chosen):
        shown, chances = batch["input_ids"][row, 1 : len(ids) - 1], np.asarray(chance_BL[row])[1:]
        suspects = np.argsort(-chances[: len(shown)])[:5]
        judged = ", ".join(
            f"{tokenizer.decode([shown[i]])} {100 * chances[i]:.0f}%" for i in suspects
        )
        original = tokenizer.decode([ids[position]])
        replaced = tokenizer.decode([sampled_B[row]])
        lines.append(
            f"{tokenizer.decode(shown)}\n  {original} became {replaced}; thought replaced: {judged}"
        )
    return lines
