"""Masked language modelling, decoded with EMD: the pre-training objective of v1 and v2."""

import jax.numpy as jnp

from deberta_jax.errors import UserError
from deberta_jax.model.flops import masked_lm_flops
from deberta_jax.objectives.prediction import TokenPrediction


class MaskedLanguageModelling(TokenPrediction):
    """Cross-entropy of the masked tokens, averaged over all of a batch's masked tokens.

    A batch holds `input_ids`, `segment_ids`, `position_ids` [B, L] and `masked_positions`,
    `masked_labels`, `masked_weights` [B, P].
    """

    def __init__(self, config, unigram_counts=None):
        if config.causal:
            raise UserError("model.causal is True; objective 'mlm' needs it False")
        super().__init__(config, unigram_counts)

    def weights(self, batch):
        return {"masked": jnp.maximum(jnp.sum(batch["masked_weights"]), 1e-6)}

    def loss(self, params, batch, weights, rng):
        sums = self._sums(params, batch, batch["masked_labels"], batch["masked_weights"], rng)
        return sums["loss"] / weights["masked"], sums

    def summarize(self, sums, weights):
        names = {"loss": "loss", "correct": "mlm_accuracy", "unigram": "unigram_loss"}
        return {names[name]: total / weights["masked"] for name, total in sums.items()}

    def flops_per_token(self, sequence_length, predictions):
        return masked_lm_flops(self.config, sequence_length, predictions) / sequence_length
