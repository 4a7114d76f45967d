"""DeBERTa-MT: masked and auto-regressive modelling at once (paper, A.4 and table 10)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from deberta_jax.data.dataset import PreparedData
from deberta_jax.data.input import MakeBatch
from deberta_jax.data.tokenizer import Tokenizer
from deberta_jax.model.config import ModelConfig
from deberta_jax.objectives.base import Batch, Objective, Params, Scalars, Shapes
from deberta_jax.objectives.clm import CausalLanguageModelling
from deberta_jax.objectives.mlm import MaskedLanguageModelling


class MaskedAndCausalLanguageModelling(Objective):
    """The sum of both losses, of one set of parameters, on the same text.

    The masked pass sees both sides of the text with its targets hidden; the causal pass sees the
    whole text under a triangular mask. All else is shared, EMD and its position table included. A
    batch is that of masked modelling.
    """

    def __init__(
        self, config: ModelConfig, unigram_counts: np.ndarray | None = None, **options: Any
    ):
        self.config = config
        self.mlm = MaskedLanguageModelling(config, unigram_counts, **options)
        causal = dataclasses.replace(config, causal=True)
        self.clm = CausalLanguageModelling(causal, unigram_counts, **options)
        self.models = self.mlm.models

    @classmethod
    def from_config(cls, config: Any, unigram_counts: np.ndarray | None = None) -> Objective:
        return cls(config.model, unigram_counts, compute=config.compute, masking=config.masking)

    def batch_shapes(self, sequence_length: int, batch_size: int) -> Shapes:
        return self.mlm.batch_shapes(sequence_length, batch_size)

    def batch_maker(self, tokenizer: Tokenizer, seed: int) -> MakeBatch:
        return self.mlm.batch_maker(tokenizer, seed)

    def init(self, rng: Key[Array, ""]) -> Params:
        return self.mlm.init(rng)

    def weights(self, batch: Batch) -> Scalars:
        return self.mlm.weights(batch) | self.clm.weights(batch)

    def loss(
        self,
        params: Params,
        batch: Batch,
        weights: Scalars,
        rng: Key[Array, ""] | None,
        train: bool,
    ) -> tuple[Float[Array, ""], Scalars]:
        rngs = (None, None) if rng is None else jax.random.split(rng)
        masked, masked_sums = self.mlm.loss(params, batch, weights, rngs[0], train)
        causal, causal_sums = self.clm.loss(params, unmasked(batch), weights, rngs[1], train)
        sums = {f"mlm/{name}": total for name, total in masked_sums.items()}
        sums |= {f"clm/{name}": total for name, total in causal_sums.items()}
        return masked + causal, sums

    def summarize(self, sums: Scalars, weights: Scalars) -> Scalars:
        metrics = {}
        for name in ("mlm", "clm"):
            own = {key.partition("/")[2]: x for key, x in sums.items() if key.startswith(name)}
            for key, value in getattr(self, name).summarize(own, weights).items():
                if key in ("loss", "unigram_loss"):
                    metrics[f"{name}_{key}"] = value
                    value += metrics.get(key, 0)
                metrics[key] = value
        return metrics

    def flops_per_token(self, sequence_length: int) -> float:
        return sum(part.flops_per_token(sequence_length) for part in (self.mlm, self.clm))

    def examples(self, params: Params, data: PreparedData, seed: int, count: int) -> list[str]:
        parts = self.mlm, self.clm
        return [line for part in parts for line in part.examples(params, data, seed, count)]


def unmasked(batch: Batch) -> Batch:
    """The batch as it was before its targets were hidden."""
    length = batch["input_ids"].shape[1]

    def restore(ids_L, positions_P, labels_P, weights_P):
        return ids_L.at[jnp.where(weights_P > 0, positions_P, length)].set(labels_P, mode="drop")

    targets = batch["masked_positions"], batch["masked_labels"], batch["masked_weights"]
    text = {name: batch[name] for name in ("segment_ids", "position_ids")}
    return text | {"input_ids": jax.vmap(restore)(batch["input_ids"], *targets)}
