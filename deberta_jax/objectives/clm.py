"""Auto-regressive language modelling: each token from those before it (paper, A.4 and table 10)."""

import jax.numpy as jnp

from deberta_jax.errors import UserError
from deberta_jax.model.flops import masked_lm_flops
from deberta_jax.objectives.prediction import TokenPrediction


class CausalLanguageModelling(TokenPrediction):
    """Cross-entropy of every token of the text given those before it in its document.

    A batch holds `input_ids`, `segment_ids`, `position_ids` [B, L], nothing hidden. With EMD each
    query gets the absolute position of the token that it stands on, as in masked modelling: the
    token that it predicts is always the next, so that either place says the same.
    """

    def __init__(self, config, unigram_counts=None):
        if not config.causal:
            raise UserError("model.causal is False; objective 'clm' needs it True")
        super().__init__(config, unigram_counts)

    def weights(self, batch):
        return {"tokens": jnp.maximum(jnp.sum(next_tokens(batch)[1]), 1e-6)}

    def loss(self, params, batch, weights, rng):
        sums = self._sums(params, batch, *next_tokens(batch), rng)
        return sums["loss"] / weights["tokens"], sums

    def summarize(self, sums, weights):
        names = {"loss": "loss", "correct": "clm_accuracy", "unigram": "unigram_loss"}
        metrics = {names[name]: total / weights["tokens"] for name, total in sums.items()}
        return metrics | {"perplexity": jnp.exp(metrics["loss"])}

    def flops_per_token(self, sequence_length, predictions):
        del predictions  # all of them
        return masked_lm_flops(self.config, sequence_length, sequence_length) / sequence_length


def next_tokens(batch):
    """The token after each place, int32 [B, L], and whether it is to be predicted, float32 [B, L].

    It is where it belongs to the same document and is no [SEP]: that one ends every run of tokens,
    also where packing cut a document, and so says nothing of the text.
    """
    ids_BL, segments_BL = batch["input_ids"], batch["segment_ids"]
    after_next_BL = jnp.pad(segments_BL, ((0, 0), (0, 2)))[:, 2:]
    counts_BL = (after_next_BL == segments_BL) & (segments_BL > 0)
    return jnp.roll(ids_BL, -1, axis=1), counts_BL.astype(jnp.float32)
