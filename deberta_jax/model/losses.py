"""Losses of predicted tokens, and the targets of auto-regressive models."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.kernels.cross_entropy import Sampling, cross_entropy
from deberta_jax.model.layers import VOCABULARY_TABLE
from deberta_jax.parallel.layout import splitting_axes


def token_losses(
    projection, labels_BP: Int[Array, "B P"]
) -> tuple[Float[Array, "B P"], Bool[Array, "B P"]]:
    """-ln p of each label, float32 [B, P], and whether no token is likelier, bool [B, P].

    Args:
        projection: what `DebertaForMaskedLM.before_projection` gives: hidden [B, P, E],
            embedding [V, E], bias [V]; laid out as the rules say where there is a mesh.
        labels_BP: int32 tokens.
    """
    hidden_BPE, embedding_VE, bias_V = projection
    axes = _axes(labels_BP, embedding_VE)
    loss_BP, right_BP = cross_entropy(hidden_BPE, embedding_VE, bias_V, labels_BP, *axes)
    return loss_BP, right_BP


def token_losses_and_samples(
    projection, labels_BP: Int[Array, "B P"], sampling: Sampling, key
) -> tuple[Float[Array, "B P"], Bool[Array, "B P"], Int[Array, "B P"]]:
    """As `token_losses`, and a token drawn at each position, int32 [B, P], in the same pass.

    Args:
        projection: as there.
        labels_BP: as there.
        sampling: the temperature, and the ids that may be drawn.
        key: a key of `jax.random`; the same key draws the same tokens on every mesh.
    """
    hidden_BPE, embedding_VE, bias_V = projection
    axes, data = _axes(labels_BP, embedding_VE), jax.random.key_data(key)
    loss_BP, right_BP, sampled_BP = cross_entropy(
        hidden_BPE, embedding_VE, bias_V, labels_BP, *axes, sampling=sampling, key=data
    )
    return loss_BP, right_BP, sampled_BP


def _axes(labels_BP, embedding_VE) -> tuple[tuple[str, ...], str | None, str | None]:
    """The mesh axes that split the batch, the vocabulary and the embedding's width."""
    (batch,) = splitting_axes(("batch",), labels_BP.shape[:1])
    rows, width = splitting_axes(VOCABULARY_TABLE, embedding_VE.shape)
    return batch, rows[0] if rows else None, width[0] if width else None


def unigram_cross_entropy(counts: np.ndarray) -> np.ndarray:
    """-ln p of each token by its corpus frequency, add-one smoothed: float32 [V]."""
    smoothed = counts.astype(np.float64) + 1
    return (np.log(smoothed.sum()) - np.log(smoothed)).astype(np.float32)


def next_tokens(batch) -> tuple[Int[Array, "B L"], Float[Array, "B L"]]:
    """The token after each place, int32 [B, L], and whether it is to be predicted, float32 [B, L].

    It is where it belongs to the same document and is no [SEP]: that one ends every run of tokens,
    also where packing cut a document, and so says nothing of the text.
    """
    ids_BL, segments_BL = batch["input_ids"], batch["segment_ids"]
    after_next_BL = jnp.pad(segments_BL, ((0, 0), (0, 2)))[:, 2:]
    counts_BL = (after_next_BL == segments_BL) & (segments_BL > 0)
    return jnp.roll(ids_BL, -1, axis=1), counts_BL.astype(jnp.float32)
