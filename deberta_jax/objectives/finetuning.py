"""Fine-tuning: a task's head on the encoder, trained by the task's criterion; SiFT if wanted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.model.config import ModelConfig
from deberta_jax.model.depth import depths
from deberta_jax.model.flops import encoder_flops
from deberta_jax.model.task_heads import TASKS
from deberta_jax.objectives import sift
from deberta_jax.objectives.config import FinetuneConfig
from deberta_jax.objectives.criteria import Classes, Criterion, Numbers, Spans


class Kind(NamedTuple):
    """A task's head (a key of `model.tasks.TASKS`) and what trains it."""

    head: str
    criterion: Criterion


KINDS = {
    "classification": Kind("sequence_classification", Classes()),
    "regression": Kind("sequence_classification", Numbers()),
    "multiple_choice": Kind("multiple_choice", Classes()),
    "span": Kind("question_answering", Spans()),
    "token_classification": Kind("token_classification", Classes()),
}


class FineTuning:
    """The loss of a task, averaged over all of a batch's items by their weights.

    A batch holds `input_ids` and `segment_ids` [B, L] ([B, C, L] for choices), `weights` [B] or
    [B, L], and targets: `labels` of the weights' shape, or `starts` and `ends` [B].
    """

    def __init__(self, config: ModelConfig, name: str, num_labels: int, settings: FinetuneConfig):
        """`name` is a key of `KINDS`; `num_labels` counts where the task has classes."""
        kind = KINDS[name]
        self.config, self.head, self._criterion = config, kind.head, kind.criterion
        self._settings, self._choices = settings, kind.head == "multiple_choice"
        options = {}
        if kind.head != "question_answering":
            options["classifier_dropout"] = settings.classifier_dropout
        if kind.head in ("sequence_classification", "token_classification"):
            options["num_labels"] = num_labels
        self.model = TASKS[kind.head](config, deterministic=True, **options)
        self._train = TASKS[kind.head](config, deterministic=False, **options)

    def init(self, rng):
        ids = jnp.ones((1, 1, 8) if self._choices else (1, 8), jnp.int32)
        return self.model.init(rng, ids)["params"]

    def depths(self, params):
        """How deep each parameter lies (`model.depth.depths`)."""
        return depths(self.config, params)

    def weights(self, batch):
        return {"items": jnp.maximum(jnp.sum(batch["weights"]), 1e-6)}

    def logits(self, params, batch, rng=None):
        """The head's outputs, float32; with dropout where there is an rng."""
        model = self.model if rng is None else self._train
        rngs = None if rng is None else {"dropout": rng}
        ids, segments = batch["input_ids"], batch["segment_ids"]
        return model.apply({"params": params}, ids, segments, rngs=rngs).astype(jnp.float32)

    def loss(self, params, batch, weights, rng):
        logits = self.logits(params, batch, rng)
        sums = self.sums(logits, batch)
        total = sums["loss"]
        if rng is not None and self._settings.sift_weight:
            sums["sift"] = self._adversarial(params, logits, batch, jax.random.fold_in(rng, 1))
            total += self._settings.sift_weight * sums["sift"]
        return total / weights["items"], sums

    def _adversarial(self, params, logits, batch, rng):
        """SiFT's divergence, summed over the items."""
        length = batch["input_ids"].shape[-1]
        shape = (int(np.prod(batch["input_ids"].shape[:-1])), length, self.config.hidden_size)
        each = sift.adversarial_divergence(
            lambda params, pass_rng: self.logits(params, batch, pass_rng),
            params,
            logits,
            lambda found, given: self._criterion.divergence(found, given, batch),
            batch["weights"],
            shape,
            rng,
            self._settings,
        )
        return jnp.sum(each * batch["weights"])

    def sums(self, logits, batch):
        """What a batch's items lose together, and how many are right."""
        found, weights = self._criterion.losses(logits, batch), batch["weights"]
        sums = {"loss": jnp.sum(found.loss * weights)}
        if found.correct is not None:
            sums["correct"] = jnp.sum(found.correct * weights)
        return sums

    def summarize(self, sums, weights):
        names = {"loss": "loss", "correct": "accuracy", "sift": "sift"}
        return {names[name]: total / weights["items"] for name, total in sums.items()}

    def flops_per_token(self, sequence_length, predictions=0):
        """As pre-training's; SiFT's passes are not counted: they are what it costs, not a gain."""
        return encoder_flops(self.config, sequence_length) / sequence_length
