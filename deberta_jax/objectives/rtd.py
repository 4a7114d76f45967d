"""Replaced-token detection: the pre-training objective of DeBERTaV3 (arXiv 2111.09543, section 3).

A generator fills masked tokens in by masked language modelling; a discriminator tells, of every
token of the filled-in text, whether the generator replaced it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key

from deberta_jax.data.dataset import PreparedData
from deberta_jax.data.input import MakeBatch
from deberta_jax.data.masking import Masker, num_predictions
from deberta_jax.data.tokenizer import FIRST_ORDINARY_ID, Tokenizer
from deberta_jax.errors import UserError
from deberta_jax.evaluation.fill_mask import fill_mask_examples
from deberta_jax.evaluation.replaced_tokens import replaced_token_examples
from deberta_jax.interop.names import POSITION_TABLE
from deberta_jax.interop.rtd_pair import make_generator, replaced_token_params
from deberta_jax.kernels.cross_entropy import Sampling
from deberta_jax.model.depth import depths
from deberta_jax.model.flops import masked_lm_flops, replaced_token_flops
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.model.losses import token_losses_and_samples, unigram_cross_entropy
from deberta_jax.model.task_heads import DebertaForReplacedToken
from deberta_jax.objectives import detection
from deberta_jax.objectives.base import (
    Batch,
    Objective,
    Params,
    Scalars,
    Shapes,
    check_architecture,
)
from deberta_jax.objectives.config import RtdConfig
from deberta_jax.objectives.prediction import token_sums
from deberta_jax.training.trainable import Stage

_TABLE = ("embeddings", "word_embeddings", "embedding")


class ReplacedTokenDetection(Objective):
    """L_MLM of the generator and L_RTD of the discriminator, whose word tables are shared.

    Decoupled (`rtd.decoupled`, as released), a step has two stages: the generator is updated; then
    the discriminator, on text that the generator filled in before its update, with tables that are
    built from the updated ones. Joint, it has one, of L_MLM + weight * L_RTD.

    Sharing: under "gdes" the discriminator's table is stop_gradient(E_G) + E_delta (section 3.3);
    under "es" both losses move one table; under "nes" each model has its own. The position table is
    the generator's alone: the discriminator has no mask decoder to read one.

    Parameters: `generator` and `discriminator`, the latter without its table where that is shared;
    `delta` under "gdes", zero at first. A batch is that of masked language modelling.
    """

    exported = ("discriminator", "generator")

    def __init__(self, config, unigram_counts=None, *, rtd=None, compute, masking, last_id=None):
        """
        Args:
            config: the discriminator's architecture; the generator's but for its layers.
            unigram_counts: int64 [V] token frequencies, for the generator's baseline.
            rtd: the objective's settings.
            compute: how both are computed.
            masking: which tokens the generator predicts.
            last_id: where ordinary ids end; read where the settings keep the others from being
                drawn.
        """
        rtd = rtd or RtdConfig()
        self.config, self.rtd, self.masking = config, rtd, masking
        least = 1 + bool(config.conv_kernel_size)  # the convolution needs a layer of its own
        layers = rtd.generator_layers or max(least, config.num_hidden_layers // 2)
        self.generator_config = dataclasses.replace(config, num_hidden_layers=layers)
        self.models = {
            "discriminator": DebertaForReplacedToken(config, compute),
            "generator": DebertaForMaskedLM(self.generator_config, compute),
        }
        self._train = {name: m.clone(deterministic=False) for name, m in self.models.items()}
        first, last = 0, config.vocab_size
        if not rtd.sample_special:
            first, last = FIRST_ORDINARY_ID, last_id or config.vocab_size
        self._sampling = Sampling(rtd.temperature, first, last)
        self.groups = ("generator", "discriminator") if rtd.decoupled else ("default",)
        self._unigram_loss_V = None
        if unigram_counts is not None:
            self._unigram_loss_V = unigram_cross_entropy(unigram_counts)

    @classmethod
    def from_config(cls, config, unigram_counts=None):
        return cls(
            config.model,
            unigram_counts,
            rtd=config.rtd,
            compute=config.compute,
            masking=config.masking,
            last_id=config.data.vocab_size,
        )

    def batch_shapes(self, sequence_length: int, batch_size: int) -> Shapes:
        return Masker.shapes(self.masking, sequence_length, batch_size)

    def batch_maker(self, tokenizer: Tokenizer, seed: int) -> MakeBatch:
        return Masker(self.masking, tokenizer, seed)

    # Parameters

    def init(self, rng: Key[Array, ""]) -> Params:
        rngs = jax.random.split(rng)
        tokens_BL, masked_BP = jnp.ones((1, 8), jnp.int32), jnp.ones((1, 2), jnp.int32)
        text = tokens_BL, tokens_BL, tokens_BL
        generator = self.models["generator"].init(rngs[0], *text, masked_BP)["params"]
        discriminator = self.models["discriminator"].init(rngs[1], *text)["params"]
        params = {"generator": generator, "discriminator": discriminator}
        if self.rtd.sharing != "nes":
            params["discriminator"] = _without_table(discriminator)
        if self.rtd.sharing == "gdes":
            table = generator["embeddings"]["word_embeddings"]
            params["delta"] = {"word_embeddings": jax.tree.map(jnp.zeros_like, table)}
        return params

    def parameter_groups(self, params):
        if not self.rtd.decoupled:
            return super().parameter_groups(params)
        groups = {"generator": "generator", "discriminator": "discriminator"}
        groups["delta"] = "discriminator"
        labels = {
            name: jax.tree.map(lambda _, name=name: groups[name], part)
            for name, part in params.items()
        }
        if self.rtd.sharing == "es":  # each loss moves it, with an optimizer's state of its own
            labels["generator"] = _with_table(labels["generator"], "generator+discriminator")
        return labels

    def optimizer_config(self, group, config):
        rate = self.rtd.discriminator_learning_rate
        if group == "discriminator" and rate:
            return dataclasses.replace(config, learning_rate=rate)
        return config

    def depths(self, params):
        parts = {name: depths(model.config, params[name]) for name, model in self.models.items()}
        if "delta" in params:
            parts["delta"] = jax.tree.map(lambda _: 0, params["delta"])
        return parts

    def params_of(self, params, name):
        if name == "generator" or self.rtd.sharing == "nes":
            return params[name]
        table = _table(params["generator"])
        if self.rtd.sharing == "gdes":
            table = table + params["delta"]["word_embeddings"]["embedding"]
        return _with_table(params["discriminator"], table)

    def initial_params(self, checkpoint):
        """Both models, from a pair; the generator made of a discriminator alone.

        E_delta is E_D - E_G where both are there: the discriminator goes on from where it stood.
        Under "es", which has one table, it is the discriminator's.
        """
        if checkpoint.new_parts:
            raise UserError("train.new_parts is for the objectives of one model, not for 'rtd'")
        pair = checkpoint.pair()
        source, decoder = f"train.init={checkpoint.path}", ("enhanced_mask_decoder",)
        check_architecture(source, pair.discriminator.config, self.config, decoder)
        generator = pair.generator
        if generator is None:
            layers = self.generator_config.num_hidden_layers
            generator = make_generator(pair.discriminator, layers)
            logging.info("%s has no generator: one is made of its lowest %d layers", source, layers)
        layers, wanted = (x.num_hidden_layers for x in (generator.config, self.generator_config))
        if layers != wanted:
            raise UserError(
                f"{source}: its generator has {layers} layers, this run's {wanted}; set "
                f"rtd.generator_layers={layers}"
            )
        check_architecture(f"the generator of {source}", generator.config, self.generator_config)
        discriminator = replaced_token_params(pair.discriminator)
        params = {"generator": generator.params, "discriminator": discriminator}
        own, table = _table(discriminator), _table(generator.params)
        if self.rtd.sharing != "nes":
            params["discriminator"] = _without_table(discriminator)
        if self.rtd.sharing == "gdes":
            params["delta"] = {"word_embeddings": {"embedding": own - table}}
        elif self.rtd.sharing == "es":
            params["generator"] = _with_table(generator.params, own)
        return params

    def released(self, params, name):
        """The discriminator carries the generator's position table, as published ones do."""
        released = super().released(params, name)
        embeddings = params["generator"]["embeddings"]
        if name == "discriminator" and "position_embeddings" in embeddings:
            table = np.asarray(embeddings["position_embeddings"]["embedding"])
            released.tensors[POSITION_TABLE] = table
        return released

    def observe(self, params: Params) -> Scalars:
        """Norm of E_delta relative to that of E_G; nothing where there is no E_delta."""
        if self.rtd.sharing != "gdes":
            return {}
        norms = [
            jnp.linalg.norm(x)
            for x in (params["delta"]["word_embeddings"]["embedding"], _table(params["generator"]))
        ]
        return {"delta_norm_share": norms[0] / norms[1]}

    # Losses

    def stages(self) -> tuple[Stage, ...]:
        if not self.rtd.decoupled:
            return super().stages()

        def generator(params, batch, weights, rng):
            return self._generator(params, batch, weights, rng, train=True)

        def discriminator(params, batch, weights, rng):
            value, sums = self._discriminator(params, batch, weights, rng, train=True)
            return self.rtd.discriminator_weight * value, (sums, {})

        return Stage(("generator",), generator), Stage(("discriminator",), discriminator)

    def weights(self, batch: Batch) -> Scalars:
        tokens = jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32)
        masked = jnp.sum(batch["masked_weights"])
        return {"masked": jnp.maximum(masked, 1e-6), "tokens": jnp.maximum(tokens, 1e-6)}

    def loss(
        self,
        params: Params,
        batch: Batch,
        weights: Scalars,
        rng: Key[Array, ""] | None,
        train: bool,
    ) -> tuple[Float[Array, ""], Scalars]:
        if rng is None:
            raise ValueError("the generator draws tokens: it needs a key")
        if not train:  # evaluation has one key: another text draws other tokens
            rng = jax.random.fold_in(rng, jnp.sum(batch["input_ids"]).astype(jnp.uint32))
        rngs = jax.random.split(rng)
        mlm, (sums, replaced) = self._generator(params, batch, weights, rngs[0], train)
        rtd, more = self._discriminator(params, batch | replaced, weights, rngs[1], train)
        return mlm + self.rtd.discriminator_weight * rtd, sums | more

    def _generator(
        self, params: Params, batch: Batch, weights: Scalars, rng: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, ""], tuple[Scalars, Batch]]:
        """(loss, (sums, the text that it fills in, and which tokens it replaced))."""
        dropout, draw = jax.random.split(rng)
        projection = self._apply(
            "generator",
            {"params": params["generator"]},
            (*_text(batch), batch["masked_positions"]),
            dropout if train else None,
            method="before_projection",
        )
        labels_BP, weights_BP = batch["masked_labels"], batch["masked_weights"]
        loss_BP, right_BP, sampled_BP = token_losses_and_samples(
            projection, labels_BP, self._sampling, draw
        )
        baseline_V = None if train else self._unigram_loss_V
        tokens = token_sums(loss_BP, right_BP, labels_BP, weights_BP, baseline_V)
        sums = {f"mlm_{name}": total for name, total in tokens.items()}
        sums["unchanged"] = jnp.sum((sampled_BP == labels_BP) * weights_BP)
        replaced = detection.filled_in(batch, sampled_BP)
        return sums["mlm_loss"] / weights["masked"], (sums, replaced)

    def _discriminator(
        self, params: Params, batch: Batch, weights: Scalars, rng: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, ""], Scalars]:
        """(loss, sums) on the text that the generator filled in."""
        segments_BL = batch["segment_ids"]
        logits_BL = self._apply(
            "discriminator",
            self._discriminator_variables(params),
            (batch["replaced_ids"], segments_BL, batch["position_ids"]),
            rng if train else None,
        )
        sums = detection.sums(logits_BL, batch["is_replaced"], segments_BL > 0)
        return sums["rtd_loss"] / weights["tokens"], sums

    def _discriminator_variables(self, params) -> dict[str, Any]:
        """What the discriminator reads; the sum of two tables is made row by row, as looked up."""
        if self.rtd.sharing == "nes":
            return {"params": params["discriminator"]}
        table = _table(params["generator"])
        if self.rtd.sharing == "es":
            return {"params": _with_table(params["discriminator"], table)}
        delta = {"embeddings": params["delta"]}
        table = jax.lax.stop_gradient(table)
        return {"params": _with_table(params["discriminator"], table), "delta": delta}

    def _apply(self, name, variables, inputs, dropout, method="__call__"):
        model = self.models[name] if dropout is None else self._train[name]
        rngs = None if dropout is None else {"dropout": dropout}
        return model.apply(variables, *inputs, rngs=rngs, method=method)

    def summarize(self, sums: Scalars, weights: Scalars) -> Scalars:
        masked, tokens = weights["masked"], weights["tokens"]
        mlm, rtd = sums["mlm_loss"] / masked, sums["rtd_loss"] / tokens
        metrics = {
            "loss": mlm + self.rtd.discriminator_weight * rtd,
            "mlm_loss": mlm,
            "mlm_accuracy": sums["mlm_correct"] / masked,
            "sampled_original_share": sums["unchanged"] / masked,
        }
        if "mlm_unigram" in sums:
            metrics["unigram_loss"] = sums["mlm_unigram"] / masked
        return metrics | detection.metrics(sums, tokens)

    def flops_per_token(self, sequence_length: int) -> float:
        predictions = num_predictions(self.masking, sequence_length)
        generator = masked_lm_flops(self.generator_config, sequence_length, predictions)
        return (generator + replaced_token_flops(self.config, sequence_length)) / sequence_length

    # What a person reads

    def examples(self, params: Params, data: PreparedData, seed: int, count: int) -> list[str]:
        def logits(params, batch):
            inputs = (*_text(batch), batch["masked_positions"])
            return self._apply("generator", {"params": params["generator"]}, inputs, None)

        def detect(params, batch):
            variables = {"params": self.params_of(params, "discriminator")}
            return self._apply("discriminator", variables, _text(batch), None)

        lines = fill_mask_examples(logits, params, data, seed, count)
        return lines + replaced_token_examples(logits, detect, params, data, seed, count)


def _text(batch):
    return batch["input_ids"], batch["segment_ids"], batch["position_ids"]


def _table(params):
    """A model's word embeddings."""
    return params["embeddings"]["word_embeddings"]["embedding"]


def _with_table(params, table):
    return unflatten_dict(flatten_dict(params) | {_TABLE: table})


def _without_table(params):
    return unflatten_dict({k: v for k, v in flatten_dict(params).items() if k != _TABLE})
