"""What the objectives that predict tokens share: model, loss against the vocabulary, baseline."""

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.kernels.cross_entropy import cross_entropy
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.depth import depths
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.model.layers import VOCABULARY_TABLE
from deberta_jax.parallel.layout import splitting_axes


class TokenPrediction:
    """A model that predicts tokens at some places of a batch, or at all of them.

    A batch holds `input_ids`, `segment_ids`, `position_ids` [B, L], and `masked_positions` [B, P]
    where tokens are predicted at some places only.
    """

    def __init__(self, config: ModelConfig, unigram_counts: np.ndarray | None = None):
        """`unigram_counts`: token frequencies, for the baseline that knows nothing else."""
        self.config = config
        self._train = DebertaForMaskedLM(config, deterministic=False)
        self.model = DebertaForMaskedLM(config, deterministic=True)
        self._unigram_loss_V = None
        if unigram_counts is not None:
            self._unigram_loss_V = unigram_cross_entropy(unigram_counts)

    def init(self, rng):
        tokens_BL, masked_BP = jnp.ones((1, 8), jnp.int32), jnp.ones((1, 2), jnp.int32)
        variables = self.model.init(rng, tokens_BL, tokens_BL, tokens_BL, masked_BP)
        return variables["params"]

    def depths(self, params):
        return depths(self.config, params)

    def logits(self, params, batch, rng=None):
        """Logits [B, P, V] at the places of `masked_positions`; with dropout if there is an rng."""
        return self._apply(params, batch, rng, "__call__")

    def _sums(self, params, batch, labels_BP, weights_BP, rng):
        """Sums over the places that count: loss, right guesses, and the baseline's loss."""
        projection = self._apply(params, batch, rng, "before_projection")
        loss_BP, right_BP = token_losses(projection, labels_BP)
        sums = {
            "loss": jnp.sum(loss_BP * weights_BP),
            "correct": jnp.sum(right_BP * weights_BP),
        }
        if rng is None and self._unigram_loss_V is not None:
            baseline_BP = jnp.asarray(self._unigram_loss_V)[labels_BP]
            sums["unigram"] = jnp.sum(baseline_BP * weights_BP)
        return sums

    def _apply(self, params, batch, rng, method):
        model = self.model if rng is None else self._train
        return model.apply(
            {"params": params},
            batch["input_ids"],
            batch["segment_ids"],
            batch["position_ids"],
            batch.get("masked_positions"),
            rngs=None if rng is None else {"dropout": rng},
            method=method,
        )


def token_losses(projection, labels_BP: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-ln p of each label, float32 [B, P], and whether no token is likelier, bool [B, P].

    Args:
        projection: what `DebertaForMaskedLM.before_projection` gives: hidden [B, P, E],
            embedding [V, E], bias [V]; laid out as the rules say where there is a mesh.
        labels_BP: int32 tokens.
    """
    hidden_BPE, embedding_VE, bias_V = projection
    (batch,) = splitting_axes(("batch",), labels_BP.shape[:1])
    rows, width = splitting_axes(VOCABULARY_TABLE, embedding_VE.shape)
    axes = batch, *(axes[0] if axes else None for axes in (rows, width))
    return cross_entropy(hidden_BPE, embedding_VE, bias_V, labels_BP, *axes)


def unigram_cross_entropy(counts: np.ndarray) -> np.ndarray:
    """-ln p of each token by its corpus frequency, add-one smoothed: float32 [V]."""
    smoothed = counts.astype(np.float64) + 1
    return (np.log(smoothed.sum()) - np.log(smoothed)).astype(np.float32)
