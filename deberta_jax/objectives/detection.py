"""Replaced-token detection as a binary classification of every token: labels, sums, scores."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Bins of the logits, from -LIMIT to LIMIT, by which the area under the curve is added up.
BINS, LIMIT = 256, 10.0


def filled_in(batch, sampled_BP: Int[Array, "B P"]) -> dict[str, jax.Array]:
    """The text with the sampled tokens in the masked positions.

    Returns:
        `replaced_ids`, int32 [B, L]; `is_replaced`, bool [B, L]: whether the token differs from the
        original. A sample that equals the original replaces nothing.
    """
    length = batch["input_ids"].shape[1]
    positions_BP = jnp.where(batch["masked_weights"] > 0, batch["masked_positions"], length)

    def put(row_L, positions_P, values_P):
        return row_L.at[positions_P].set(values_P, mode="drop")

    ids_BL = jax.vmap(put)(batch["input_ids"], positions_BP, sampled_BP)
    nothing_BL = jnp.zeros(ids_BL.shape, bool)
    differs_BP = sampled_BP != batch["masked_labels"]
    return {
        "replaced_ids": ids_BL,
        "is_replaced": jax.vmap(put)(nothing_BL, positions_BP, differs_BP),
    }


def sums(
    logits_BL: Float[Array, "B L"], replaced_BL: Bool[Array, "B L"], counts_BL: Bool[Array, "B L"]
) -> dict[str, jax.Array]:
    """Binary cross-entropy and counts, float32, over the tokens that count.

    `scores` is a histogram of the logits, [2, BINS]: of original and of replaced tokens.
    """
    logits_BL = logits_BL.astype(jnp.float32)
    loss_BL = jax.nn.softplus(logits_BL) - logits_BL * replaced_BL
    says_BL = logits_BL > 0
    bins_BL = ((logits_BL + LIMIT) * (BINS / (2 * LIMIT))).astype(jnp.int32)
    bins_BL = jnp.clip(bins_BL, 0, BINS - 1) + BINS * replaced_BL
    scores = jnp.zeros(2 * BINS).at[bins_BL.ravel()].add(counts_BL.ravel().astype(jnp.float32))

    def count(which_BL):
        return jnp.sum(which_BL & counts_BL).astype(jnp.float32)

    return {
        "rtd_loss": jnp.sum(loss_BL * counts_BL),
        "replaced": count(replaced_BL),
        "said": count(says_BL),
        "hits": count(says_BL & replaced_BL),
        "scores": scores.reshape(2, BINS),
    }


def metrics(sums, tokens) -> dict[str, jax.Array]:
    """Scores of the discriminator, beside the baseline that calls every token original.

    Precision, recall and F1 are those of "replaced"; the area under the ROC curve counts pairs of
    a replaced and an original token in one bin as half right.
    """
    replaced, said, hits = sums["replaced"], sums["said"], sums["hits"]
    originals, positives = sums["scores"]
    below = jnp.cumsum(originals) - originals
    pairs = jnp.sum(originals) * jnp.sum(positives)
    ordered = jnp.sum(positives * (below + originals / 2))
    return {
        "rtd_loss": sums["rtd_loss"] / tokens,
        "rtd_accuracy": 1 - (replaced + said - 2 * hits) / tokens,
        "all_original_accuracy": 1 - replaced / tokens,
        "replaced_share": replaced / tokens,
        "rtd_precision": hits / jnp.maximum(said, 1),
        "rtd_recall": hits / jnp.maximum(replaced, 1),
        "rtd_f1": 2 * hits / jnp.maximum(said + replaced, 1),
        "rtd_auc": jnp.where(pairs > 0, ordered / jnp.maximum(pairs, 1), 0.5),
    }
