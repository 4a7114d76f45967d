"""An objective from outside the package: each token from itself, through the whole model.

What a stranger writes; `tests/test_objectives_and_verbs.py` installs it by its entry point.
"""

import jax.numpy as jnp

from deberta_jax.data.masking import text_shapes, unmasked
from deberta_jax.model.flops import masked_lm_flops
from deberta_jax.objectives.prediction import TokenPrediction


class Copy(TokenPrediction):
    """The mean cross-entropy of every token of the text, which the model sees."""

    def batch_shapes(self, sequence_length, batch_size):
        return text_shapes(sequence_length, batch_size)

    def batch_maker(self, tokenizer, seed):
        return unmasked

    def weights(self, batch):
        return {"tokens": jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32)}

    def loss(self, params, batch, weights, rng, train):
        counts = (batch["segment_ids"] > 0).astype(jnp.float32)
        sums = self._sums(params, batch, batch["input_ids"], counts, rng, train)
        return sums["loss"] / weights["tokens"], {"loss": sums["loss"]}

    def summarize(self, sums, weights):
        return {"loss": sums["loss"] / weights["tokens"]}

    def flops_per_token(self, sequence_length):
        return masked_lm_flops(self.config, sequence_length, sequence_length) / sequence_length
