"""DeBERTa-MT: masked and auto-regressive modelling at once (paper, A.4 and table 10)."""

import dataclasses

import jax
import jax.numpy as jnp

from deberta_jax.objectives.base import Objective
from deberta_jax.objectives.clm import CausalLanguageModelling
from deberta_jax.objectives.mlm import MaskedLanguageModelling


class MaskedAndCausalLanguageModelling(Objective):
    """The sum of both losses, of one set of parameters, on the same text.

    The masked pass sees both sides of the text with its targets hidden; the causal pass sees the
    whole text under a triangular mask. All else is shared, EMD and its position table included. A
    batch is that of masked modelling.
    """

    def __init__(self, config, unigram_counts=None, **options):
        self.config = config
        self.mlm = MaskedLanguageModelling(config, unigram_counts, **options)
        causal = dataclasses.replace(config, causal=True)
        self.clm = CausalLanguageModelling(causal, unigram_counts, **options)
        self.models = self.mlm.models

    @classmethod
    def from_config(cls, config, unigram_counts=None):
        return cls(config.model, unigram_counts, compute=config.compute, masking=config.masking)

    def batch_shapes(self, sequence_length, batch_size):
        return self.mlm.batch_shapes(sequence_length, batch_size)

    def batch_maker(self, tokenizer, seed):
        return self.mlm.batch_maker(tokenizer, seed)

    def init(self, rng):
        return self.mlm.init(rng)

    def weights(self, batch):
        return self.mlm.weights(batch) | self.clm.weights(batch)

    def loss(self, params, batch, weights, rng, train):
        rngs = (None, None) if rng is None else jax.random.split(rng)
        masked, masked_sums = self.mlm.loss(params, batch, weights, rngs[0], train)
        causal, causal_sums = self.clm.loss(params, unmasked(batch), weights, rngs[1], train)
        sums = {f"mlm/{name}": total for name, total in masked_sums.items()}
        sums |= {f"clm/{name}": total for name, total in causal_sums.items()}
        return masked + causal, sums

    def summarize(self, sums, weights):
        metrics = {}
        for name in ("mlm", "clm"):
            own = {key.partition("/")[2]: x for key, x in sums.items() if key.startswith(name)}
            for key, value in getattr(self, name).summarize(own, weights).items():
                if key in ("loss", "unigram_loss"):
                    metrics[f"{name}_{key}"] = value
                    value += metrics.get(key, 0)
                metrics[key] = value
        return metrics

    def flops_per_token(self, sequence_length):
        return sum(part.flops_per_token(sequence_length) for part in (self.mlm, self.clm))

    def examples(self, params, data, seed, count):
        parts = self.mlm, self.clm
        return [line for part in parts for line in part.examples(params, data, seed, count)]


def unmasked(batch):
    """The batch as it was before its targets were hidden."""
    length = batch["input_ids"].shape[1]

    def restore(ids_L, places_P, labels_P, weights_P):
        return ids_L.at[jnp.where(weights_P > 0, places_P, length)].set(labels_P, mode="drop")

    targets = batch["masked_positions"], batch["masked_labels"], batch["masked_weights"]
    text = {name: batch[name] for name in ("segment_ids", "position_ids")}
    return text | {"input_ids": jax.vmap(restore)(batch["input_ids"], *targets)}
