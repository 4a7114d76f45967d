"""Fine-tuning: a task's head on the encoder, trained by the task's criterion; SiFT if wanted."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from deberta_jax.data.input import MakeBatch
from deberta_jax.data.tokenizer import Tokenizer
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.flops import encoder_flops
from deberta_jax.model.task_heads import TASK_MODELS
from deberta_jax.objectives import sift
from deberta_jax.objectives.base import Batch, Objective, Params, Scalars, Shapes
from deberta_jax.objectives.config import FinetuneConfig
from deberta_jax.objectives.criteria import Classes, Criterion, LabelSets, Numbers, Spans


class Kind(NamedTuple):
    """A task's head (a key of `model.task_heads.TASK_MODELS`) and what trains it."""

    head: str
    criterion: Criterion


KINDS = {
    "classification": Kind("sequence_classification", Classes()),
    "multi_label": Kind("sequence_classification", LabelSets()),
    "regression": Kind("sequence_classification", Numbers()),
    "multiple_choice": Kind("multiple_choice", Classes()),
    "span": Kind("question_answering", Spans()),
    "token_classification": Kind("token_classification", Classes()),
}


# Choices of a task whose recipe names one column that holds a list of them (RACE, MCTest).
LISTED_CHOICES = 4


class FineTuning(Objective):
    """The loss of a task, averaged over all of a batch's items by their weights.

    A batch holds `input_ids` and `segment_ids` [B, L] ([B, C, L] for choices), `weights` [B] or
    [B, L], and targets: `labels` of the weights' shape, `label_set` [B, C], or `starts` and `ends`
    [B].
    """

    learns_from_text = False

    def __init__(
        self,
        config: ModelConfig,
        name: str,
        num_labels: int,
        settings: FinetuneConfig,
        *,
        compute: ComputeConfig | None = None,
        choices: int = 2,
    ):
        """`name` is a key of `KINDS`; `num_labels` counts where the task has classes."""
        kind = KINDS[name]
        self.config, self.head, self._criterion = config, kind.head, kind.criterion
        self._num_labels = num_labels
        self._settings, self._choices = settings, choices if kind.head == "multiple_choice" else 0
        compute = compute or ComputeConfig()
        options: dict[str, Any] = {}
        if kind.head != "question_answering":
            options["classifier_dropout"] = settings.classifier_dropout
        if kind.head in ("sequence_classification", "token_classification"):
            options["num_labels"] = num_labels
        self.model = TASK_MODELS[kind.head](config, compute, deterministic=True, **options)
        self.models = {"model": self.model}
        self._train = TASK_MODELS[kind.head](config, compute, deterministic=False, **options)

    @classmethod
    def from_config(cls, config: Any, unigram_counts: np.ndarray | None = None) -> "FineTuning":
        del unigram_counts
        labels, choices = len(config.task.labels) or 1, len(config.task.choices)
        if choices < 2:  # one column holds a list, whose length only the examples have
            choices = LISTED_CHOICES
        sections = {"compute": config.compute, "choices": choices}
        return cls(config.model, config.objective, labels, config.finetune, **sections)

    def batch_shapes(self, sequence_length: int, batch_size: int) -> Shapes:
        items = (batch_size, self._choices) if self._choices else (batch_size,)
        tokens = jax.ShapeDtypeStruct((*items, sequence_length), jnp.int32)
        shapes = {"input_ids": tokens, "segment_ids": tokens}
        return shapes | self._criterion.target_shapes(
            (batch_size, sequence_length) if self.head == "token_classification" else (batch_size,),
            self._num_labels,
        )

    def batch_maker(self, tokenizer: Tokenizer, seed: int) -> MakeBatch:
        raise NotImplementedError("a task's examples come as batches (`data.tasks.batches`)")

    def init(self, rng: Key[Array, ""]) -> Params:
        ids = jnp.ones((1, 1, 8) if self._choices else (1, 8), jnp.int32)
        return self.model.init(rng, ids)["params"]

    def weights(self, batch: Batch) -> Scalars:
        return {"items": jnp.maximum(jnp.sum(batch["weights"]), 1e-6)}

    def logits(
        self,
        params: Params,
        batch: Batch,
        rng: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> Float[Array, "B ..."]:
        """The head's outputs, float32."""
        model = self._train if train else self.model
        rngs = {"dropout": rng} if rng is not None and train else None
        ids, segments = batch["input_ids"], batch["segment_ids"]
        outputs: Any = model.apply({"params": params}, ids, segments, rngs=rngs)
        return outputs.astype(jnp.float32)

    def loss(
        self,
        params: Params,
        batch: Batch,
        weights: Scalars,
        rng: Key[Array, ""] | None,
        train: bool,
    ) -> tuple[Float[Array, ""], Scalars]:
        logits = self.logits(params, batch, rng, train)
        sums = self.sums(logits, batch)
        total = sums["loss"]
        if train and self._settings.sift_weight:
            if rng is None:
                raise ValueError("SiFT draws perturbations: training needs a key")
            sums["sift"] = self._adversarial(params, logits, batch, jax.random.fold_in(rng, 1))
            total += self._settings.sift_weight * sums["sift"]
        return total / weights["items"], sums

    def _adversarial(
        self, params: Params, logits: Float[Array, "B ..."], batch: Batch, rng: Key[Array, ""]
    ) -> Float[Array, ""]:
        """SiFT's divergence, summed over the items."""
        length = batch["input_ids"].shape[-1]
        shape = (int(np.prod(batch["input_ids"].shape[:-1])), length, self.config.hidden_size)
        each = sift.adversarial_divergence(
            lambda params, pass_rng: self.logits(params, batch, pass_rng, train=True),
            params,
            logits,
            lambda perturbed, clean: self._criterion.divergence(perturbed, clean, batch),
            batch["weights"],
            shape,
            rng,
            self._settings,
        )
        return jnp.sum(each * batch["weights"])

    def sums(self, logits: Float[Array, "B ..."], batch: Batch) -> Scalars:
        """What a batch's items lose together, and how many are right."""
        losses, weights = self._criterion.losses(logits, batch), batch["weights"]
        sums = {"loss": jnp.sum(losses.loss * weights)}
        if losses.correct is not None:
            sums["correct"] = jnp.sum(losses.correct * weights)
        return sums

    def summarize(self, sums: Scalars, weights: Scalars) -> Scalars:
        names = {"loss": "loss", "correct": "accuracy", "sift": "sift"}
        return {names[name]: total / weights["items"] for name, total in sums.items()}

    def flops_per_token(self, sequence_length: int) -> float:
        """As pre-training's; SiFT's passes are not counted: they are what it costs, not a gain."""
        return encoder_flops(self.config, sequence_length) / sequence_length
