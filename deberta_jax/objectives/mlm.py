"""Masked language modelling, decoded with EMD: the pre-training objective of v1 and v2."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from deberta_jax.data.dataset import PreparedData
from deberta_jax.data.input import MakeBatch
from deberta_jax.data.masking import Masker, num_predictions
from deberta_jax.data.tokenizer import Tokenizer
from deberta_jax.errors import UserError
from deberta_jax.evaluation.fill_mask import fill_mask_examples
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.flops import masked_lm_flops
from deberta_jax.objectives.base import Batch, Params, Scalars, Shapes
from deberta_jax.objectives.prediction import TokenPrediction


class MaskedLanguageModelling(TokenPrediction):
    """Cross-entropy of the masked tokens, averaged over all of a batch's masked tokens.

    A batch holds `input_ids`, `segment_ids`, `position_ids` [B, L] and `masked_positions`,
    `masked_labels`, `masked_weights` [B, P].
    """

    def __init__(
        self, config: ModelConfig, unigram_counts: np.ndarray | None = None, **options: Any
    ):
        if config.causal:
            raise UserError("model.causal is True; objective 'mlm' needs it False")
        super().__init__(config, unigram_counts, **options)

    def batch_shapes(self, sequence_length: int, batch_size: int) -> Shapes:
        return Masker.shapes(self.masking, sequence_length, batch_size)

    def batch_maker(self, tokenizer: Tokenizer, seed: int) -> MakeBatch:
        return Masker(self.masking, tokenizer, seed)

    def weights(self, batch: Batch) -> Scalars:
        return {"masked": jnp.maximum(jnp.sum(batch["masked_weights"]), 1e-6)}

    def loss(
        self,
        params: Params,
        batch: Batch,
        weights: Scalars,
        rng: Key[Array, ""] | None,
        train: bool,
    ) -> tuple[Float[Array, ""], Scalars]:
        targets = batch["masked_labels"], batch["masked_weights"]
        sums = self._sums(params, batch, *targets, rng, train)
        return sums["loss"] / weights["masked"], sums

    def summarize(self, sums: Scalars, weights: Scalars) -> Scalars:
        names = {"loss": "loss", "correct": "mlm_accuracy", "unigram": "unigram_loss"}
        return {names[name]: total / weights["masked"] for name, total in sums.items()}

    def flops_per_token(self, sequence_length: int) -> float:
        predictions = num_predictions(self.masking, sequence_length)
        return masked_lm_flops(self.config, sequence_length, predictions) / sequence_length

    def examples(self, params: Params, data: PreparedData, seed: int, count: int) -> list[str]:
        return fill_mask_examples(self.logits, params, data, seed, count)
