"""What the objectives that predict tokens share: the model, the sums, the baseline."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from deberta_jax.data.config import MaskingConfig
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.model.losses import token_losses, unigram_cross_entropy
from deberta_jax.objectives.base import Batch, Objective, Params, Scalars


class TokenPrediction(Objective):
    """A model that predicts tokens at some positions of a batch, or at all of them.

    A batch holds `input_ids`, `segment_ids`, `position_ids` [B, L], and `masked_positions` [B, P]
    where tokens are predicted at some positions only.
    """

    def __init__(
        self,
        config: ModelConfig,
        unigram_counts: np.ndarray | None = None,
        *,
        compute: ComputeConfig | None = None,
        masking: MaskingConfig | None = None,
    ):
        """
        Args:
            config: the architecture.
            unigram_counts: int64 [V] token frequencies, for the baseline that knows nothing else.
            compute: how it is computed.
            masking: which tokens become targets, where some do.
        """
        self.config = config
        self.masking = masking or MaskingConfig()
        compute = compute or ComputeConfig()
        self._train = DebertaForMaskedLM(config, compute, deterministic=False)
        self.model = DebertaForMaskedLM(config, compute, deterministic=True)
        self.models = {"model": self.model}
        self._unigram_loss_V = None
        if unigram_counts is not None:
            self._unigram_loss_V = unigram_cross_entropy(unigram_counts)

    @classmethod
    def from_config(cls, config: Any, unigram_counts: np.ndarray | None = None) -> Objective:
        return cls(config.model, unigram_counts, compute=config.compute, masking=config.masking)

    def init(self, rng: Key[Array, ""]) -> Params:
        tokens_BL, masked_BP = jnp.ones((1, 8), jnp.int32), jnp.ones((1, 2), jnp.int32)
        variables = self.model.init(rng, tokens_BL, tokens_BL, tokens_BL, masked_BP)
        return variables["params"]

    def logits(self, params: Params, batch: Batch) -> Float[Array, "B P V"]:
        """Logits at `masked_positions`, or at every position; without dropout."""
        return self._apply(params, batch, None, False, "__call__")

    def _sums(
        self,
        params: Params,
        batch: Batch,
        labels_BP: Int[Array, "B P"],
        weights_BP: Float[Array, "B P"],
        rng: Key[Array, ""] | None,
        train: bool,
    ) -> Scalars:
        """Sums over the positions that count: loss, right predictions, and the baseline's loss."""
        projection = self._apply(params, batch, rng, train, "before_projection")
        losses = token_losses(projection, labels_BP)
        return token_sums(*losses, labels_BP, weights_BP, None if train else self._unigram_loss_V)

    def _apply(
        self, params: Params, batch: Batch, rng: Key[Array, ""] | None, train: bool, method: str
    ) -> Any:
        model = self._train if train else self.model
        return model.apply(
            {"params": params},
            batch["input_ids"],
            batch["segment_ids"],
            batch["position_ids"],
            batch.get("masked_positions"),
            rngs={"dropout": rng} if rng is not None and train else None,
            method=method,
        )


def token_sums(
    loss_BP: Float[Array, "B P"],
    right_BP: Bool[Array, "B P"],
    labels_BP: Int[Array, "B P"],
    weights_BP: Float[Array, "B P"],
    unigram_loss_V: np.ndarray | None = None,
) -> Scalars:
    """Sums of predicted tokens, by their weights: `loss`, `correct`; `unigram`, the loss of the
    baseline that knows `unigram_loss_V` alone, where it is given."""
    sums = {
        "loss": jnp.sum(loss_BP * weights_BP),
        "correct": jnp.sum(right_BP * weights_BP),
    }
    if unigram_loss_V is not None:
        sums["unigram"] = jnp.sum(jnp.asarray(unigram_loss_V)[labels_BP] * weights_BP)
    return sums
