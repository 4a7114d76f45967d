"""Auto-regressive language modelling: each token from those before it (paper, A.4 and table 10)."""

import jax.numpy as jnp

from deberta_jax.data.masking import text_shapes, unmasked
from deberta_jax.errors import UserError
from deberta_jax.evaluation.continuations import continuations
from deberta_jax.model.flops import masked_lm_flops
from deberta_jax.model.losses import next_tokens
from deberta_jax.objectives.prediction import TokenPrediction


class CausalLanguageModelling(TokenPrediction):
    """Cross-entropy of every token of the text given those before it in its document.

    A batch holds `input_ids`, `segment_ids`, `position_ids` [B, L], nothing hidden. With EMD each
    query gets the absolute position of the token that it stands on, as in masked modelling: the
    token that it predicts is always the next, so that either place says the same.
    """

    def __init__(self, config, unigram_counts=None, **options):
        if not config.causal:
            raise UserError("model.causal is False; objective 'clm' needs it True")
        super().__init__(config, unigram_counts, **options)

    def batch_shapes(self, sequence_length, batch_size):
        return text_shapes(sequence_length, batch_size)

    def batch_maker(self, tokenizer, seed):
        del tokenizer, seed
        return unmasked

    def weights(self, batch):
        return {"tokens": jnp.maximum(jnp.sum(next_tokens(batch)[1]), 1e-6)}

    def loss(self, params, batch, weights, rng, train):
        labels_BL, weights_BL = next_tokens(batch)
        sums = self._sums(params, batch, labels_BL, weights_BL, rng, train)
        return sums["loss"] / weights["tokens"], sums

    def summarize(self, sums, weights):
        names = {"loss": "loss", "correct": "clm_accuracy", "unigram": "unigram_loss"}
        metrics = {names[name]: total / weights["tokens"] for name, total in sums.items()}
        return metrics | {"perplexity": jnp.exp(metrics["loss"])}

    def flops_per_token(self, sequence_length):
        return masked_lm_flops(self.config, sequence_length, sequence_length) / sequence_length

    def examples(self, params, data, seed, count):
        return continuations(self.logits, params, data, seed, count)
