"""Masked language modelling, decoded with EMD: the pre-training objective of v1 and v2."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.kernels.cross_entropy import cross_entropy
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.depth import depths
from deberta_jax.model.flops import masked_lm_flops
from deberta_jax.model.heads import DebertaForMaskedLM


class MaskedLanguageModelling:
    """Cross-entropy of the masked tokens, averaged over all of a batch's masked tokens.

    A batch holds `input_ids`, `segment_ids`, `position_ids` [B, L] and `masked_positions`,
    `masked_labels`, `masked_weights` [B, P].
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

    def weights(self, batch):
        return {"masked": jnp.maximum(jnp.sum(batch["masked_weights"]), 1e-6)}

    def loss(self, params, batch, weights, rng):
        hidden_BPE, embedding_VE, bias_V = self._apply(params, batch, rng, "before_projection")
        labels_BP, weights_BP = batch["masked_labels"], batch["masked_weights"]
        axes = _mesh_axes(labels_BP.shape[0], embedding_VE.shape)
        loss_BP, right_BP = cross_entropy(hidden_BPE, embedding_VE, bias_V, labels_BP, *axes)
        sums = {
            "loss": jnp.sum(loss_BP * weights_BP),
            "correct": jnp.sum(right_BP * weights_BP),
        }
        if rng is None and self._unigram_loss_V is not None:
            baseline_BP = jnp.asarray(self._unigram_loss_V)[labels_BP]
            sums["unigram"] = jnp.sum(baseline_BP * weights_BP)
        return sums["loss"] / weights["masked"], sums

    def logits(self, params, batch, rng=None):
        """Logits [B, P, V] of the masked tokens; with dropout where there is an rng."""
        return self._apply(params, batch, rng, "__call__")

    def _apply(self, params, batch, rng, method):
        model = self.model if rng is None else self._train
        return model.apply(
            {"params": params},
            batch["input_ids"],
            batch["segment_ids"],
            batch["position_ids"],
            batch["masked_positions"],
            rngs=None if rng is None else {"dropout": rng},
            method=method,
        )

    def summarize(self, sums, weights):
        names = {"loss": "loss", "correct": "mlm_accuracy", "unigram": "unigram_loss"}
        return {names[name]: total / weights["masked"] for name, total in sums.items()}

    def flops_per_token(self, sequence_length, predictions):
        return masked_lm_flops(self.config, sequence_length, predictions) / sequence_length


def _mesh_axes(batch_size: int, embedding_shape: tuple[int, int]):
    """Mesh axes that split the batch, and the two axes of the word embedding, where they divide.

    What `nn.logical_axis_rules` says of the mesh that the step is traced on; none outside of one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return (), None, None

    def splitting(axes, size):
        """Those of some mesh axes that split anything, if they divide `size`."""
        axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
        axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
        return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()

    (batch_axes,) = nn.logical_to_mesh_axes(("batch",))
    table_axes = zip(nn.logical_to_mesh_axes(("vocab", "embed")), embedding_shape, strict=True)
    table_axes = (splitting(axes, size) for axes, size in table_axes)
    return splitting(batch_axes, batch_size), *(axes[0] if axes else None for axes in table_axes)


def unigram_cross_entropy(counts: np.ndarray) -> np.ndarray:
    """-ln p of each token by its corpus frequency, add-one smoothed: float32 [V]."""
    smoothed = counts.astype(np.float64) + 1
    return (np.log(smoothed.sum()) - np.log(smoothed)).astype(np.float32)
