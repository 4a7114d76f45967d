"""Auto-regressive language modelling: each token from those before it (paper, A.4 and table 10)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from deberta_jax.data.dataset import PreparedData
from deberta_jax.data.input import MakeBatch
from deberta_jax.data.masking import text_shapes, unmasked
from deberta_jax.data.tokenizer import Tokenizer
from deberta_jax.errors import UserError
from deberta_jax.evaluation.continuations import continuations
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.flops import masked_lm_flops
from deberta_jax.model.losses import next_tokens
from deberta_jax.objectives.base import Batch, Params, Scalars, Shapes
from deberta_jax.objectives.prediction import TokenPrediction


class CausalLanguageModelling(TokenPrediction):
    """Cross-entropy of every token of the text given those before it in its document.

    A batch holds `input_ids`, `segment_ids`, `position_ids` [B, L], nothing hidden. With EMD each
    query gets the absolute position of the token that it stands on, as in masked modelling: the
    token that it predicts is always the next, so that either position says the same.
    """

    def __init__(
        self, config: ModelConfig, unigram_counts: np.ndarray | None = None, **options: Any
    ):
        if not config.causal:
            raise UserError("model.causal is False; objective 'clm' needs it True")
        super().__init__(config, unigram_counts, **options)

    def batch_shapes(self, sequence_length: int, batch_size: int) -> Shapes:
        return text_shapes(sequence_length, batch_size)

    def batch_maker(self, tokenizer: Tokenizer, seed: int) -> MakeBatch:
        del tokenizer, seed
        return unmasked

    def weights(self, batch: Batch) -> Scalars:
        return {"tokens": jnp.maximum(jnp.sum(next_tokens(batch)[1]), 1e-6)}

    def loss(
        self,
        params: Params,
        batch: Batch,
        weights: Scalars,
        rng: Key[Array, ""] | None,
        train: bool,
    ) -> tuple[Float[Array, ""], Scalars]:
        labels_BL, weights_BL = next_tokens(batch)
        sums = self._sums(params, batch, labels_BL, weights_BL, rng, train)
        return sums["loss"] / weights["tokens"], sums

    def summarize(self, sums: Scalars, weights: Scalars) -> Scalars:
        names = {"loss": "loss", "correct": "clm_accuracy", "unigram": "unigram_loss"}
        metrics = {names[name]: total / weights["tokens"] for name, total in sums.items()}
        return metrics | {"perplexity": jnp.exp(metrics["loss"])}

    def flops_per_token(self, sequence_length: int) -> float:
        return masked_lm_flops(self.config, sequence_length, sequence_length) / sequence_length

    def examples(self, params: Params, data: PreparedData, seed: int, count: int) -> list[str]:
        return continuations(self.logits, params, data, seed, count)
