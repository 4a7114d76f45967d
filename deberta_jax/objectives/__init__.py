"""What is learned. An objective is the only thing that knows what a batch means."""

from typing import Any, Protocol

import flax.linen as nn
import jax

from deberta_jax.errors import UserError

# Objectives whose batches are the text as it is, with no targets hidden.
UNMASKED = ("clm",)


class Objective(Protocol):
    """What the training loop asks of an objective.

    `weights` and `sums` are flat dicts of float32 scalars that add up over the parts of a batch and
    over batches; `summarize` turns them into metrics. So a loss means the same for a microbatch, a
    batch and a whole evaluation.
    """

    # The model without dropout, as a checkpoint of it is loaded.
    model: nn.Module

    def init(self, rng: jax.Array) -> Any:
        """Parameters, boxed with their logical axes."""

    def depths(self, params) -> Any:
        """How deep each parameter lies, a tree like `params`: what `layer_decay` goes by."""

    def weights(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What the sums of this batch are to be divided by."""

    def loss(self, params, batch, weights, rng: jax.Array | None):
        """(loss, sums) of these rows; the loss is divided by `weights`. No rng: no dropout."""

    def summarize(self, sums, weights) -> dict[str, jax.Array]:
        """Metrics by name, without a prefix; "loss" is what training minimises."""

    def flops_per_token(self, sequence_length: int, predictions: int) -> float:
        """Model FLOPs of one token of a training step, forward and backward."""


def make(config, unigram_counts=None) -> Objective:
    """The objective that `config.objective` names.

    Args:
        config: a `deberta_jax.schema.Config`.
        unigram_counts: int64 [vocabulary], how often each ordinary token occurs in the corpus;
            for objectives that pre-train.
    """
    if config.objective == "mlm":
        from deberta_jax.objectives.mlm import MaskedLanguageModelling

        return MaskedLanguageModelling(config.model, unigram_counts)
    if config.objective == "clm":
        from deberta_jax.objectives.clm import CausalLanguageModelling

        return CausalLanguageModelling(config.model, unigram_counts)
    if config.objective == "mlm_clm":
        from deberta_jax.objectives.mlm_clm import MaskedAndCausalLanguageModelling

        return MaskedAndCausalLanguageModelling(config.model, unigram_counts)
    from deberta_jax.objectives.finetuning import KINDS, FineTuning

    if config.objective in KINDS:
        labels = len(config.task.labels) or 1
        return FineTuning(config.model, config.objective, labels, config.finetune)
    known = ", ".join(map(repr, ("mlm", "clm", "mlm_clm", *KINDS)))
    raise UserError(f"objective is {config.objective!r}; it must be one of {known}")
