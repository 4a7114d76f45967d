"""What each task's head is trained by: losses of its items, and how far two outputs are apart.

Each item (a text, or a token of it) has a loss and a divergence; `weights` say how much it counts.
Everything is computed in float32.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from deberta_jax.objectives.base import Batch, Shapes

# Axes that items have: a batch, or the tokens of a batch.
Items = tuple[int, ...]


class Losses(NamedTuple):
    """What a batch's items lose.

    Attributes:
        loss: [B] or [B, L].
        correct: 1 where the highest logit, or the whole set of labels, is right; None for numbers.
    """

    loss: Float[Array, "*N"]
    correct: Float[Array, "*N"] | None


class Criterion(Protocol):
    """A task's loss."""

    def losses(self, logits: Float[Array, "B ..."], batch: Batch) -> Losses:
        """What each item loses."""

    def divergence(
        self, logits: Float[Array, "B ..."], others: Float[Array, "B ..."], batch: Batch
    ) -> Float[Array, "*N"]:
        """How far apart two outputs for the same items are, each item's: SiFT's loss."""

    def target_shapes(self, items: Items, num_labels: int) -> Shapes:
        """Targets and `weights` of a batch of so many items."""


def _labels(items: Items, dtype: DTypeLike) -> Shapes:
    weights = jax.ShapeDtypeStruct(items, jnp.float32)
    return {"labels": jax.ShapeDtypeStruct(items, dtype), "weights": weights}


class Classes:
    """One of some classes for every item: logits [..., C] against `labels` [...]."""

    def losses(self, logits: Float[Array, "*N C"], batch: Batch) -> Losses:
        labels = batch["labels"]
        logp = jax.nn.log_softmax(logits)
        loss = -jnp.take_along_axis(logp, labels[..., None], axis=-1)[..., 0]
        return Losses(loss, (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))

    def divergence(
        self, logits: Float[Array, "*N C"], others: Float[Array, "*N C"], batch: Batch
    ) -> Float[Array, "*N"]:
        return symmetric_kl(logits, others)

    def target_shapes(self, items: Items, num_labels: int) -> Shapes:
        return _labels(items, jnp.int32)


class LabelSets:
    """Some of the labels for every item: logits [B, C] against `label_set` [B, C] of 0 and 1.

    The loss is the mean of the labels' cross-entropies, each by its own sigmoid.
    """

    def losses(self, logits: Float[Array, "B C"], batch: Batch) -> Losses:
        labels = batch["label_set"]
        right = jax.nn.log_sigmoid(logits) * labels
        wrong = jax.nn.log_sigmoid(-logits) * (1 - labels)
        correct = jnp.all((logits > 0) == (labels > 0), axis=-1)
        return Losses(-jnp.mean(right + wrong, axis=-1), correct.astype(jnp.float32))

    def divergence(
        self, logits: Float[Array, "B C"], others: Float[Array, "B C"], batch: Batch
    ) -> Float[Array, " B"]:
        # A sigmoid is a softmax over the logit and 0.
        pair = (jnp.stack([x, jnp.zeros_like(x)], axis=-1) for x in (logits, others))
        return jnp.mean(symmetric_kl(*pair), axis=-1)

    def target_shapes(self, items: Items, num_labels: int) -> Shapes:
        weights = jax.ShapeDtypeStruct(items, jnp.float32)
        labels = jax.ShapeDtypeStruct((*items, num_labels), jnp.float32)
        return {"label_set": labels, "weights": weights}


class Numbers:
    """A number for every item: squared error of logits [B, 1] against `labels` [B]."""

    def losses(self, logits: Float[Array, "B 1"], batch: Batch) -> Losses:
        return Losses((logits[:, 0] - batch["labels"]) ** 2, None)

    def divergence(
        self, logits: Float[Array, "B 1"], others: Float[Array, "B 1"], batch: Batch
    ) -> Float[Array, " B"]:
        return (logits[:, 0] - others[:, 0]) ** 2

    def target_shapes(self, items: Items, num_labels: int) -> Shapes:
        return _labels(items, jnp.float32)


class Spans:
    """Start and end of an answer: the mean of two cross-entropies over the tokens, [B, L, 2]."""

    def losses(self, logits: Float[Array, "B L 2"], batch: Batch) -> Losses:
        logits_B2L = _tokens_last(logits, batch["segment_ids"])
        targets_B2 = jnp.stack([batch["starts"], batch["ends"]], axis=1)
        logp = jax.nn.log_softmax(logits_B2L)
        loss_B2 = -jnp.take_along_axis(logp, targets_B2[..., None], axis=-1)[..., 0]
        right_B = jnp.all(jnp.argmax(logits_B2L, axis=-1) == targets_B2, axis=1)
        return Losses(jnp.mean(loss_B2, axis=1), right_B.astype(jnp.float32))

    def divergence(
        self, logits: Float[Array, "B L 2"], others: Float[Array, "B L 2"], batch: Batch
    ) -> Float[Array, " B"]:
        pair = (_tokens_last(outputs, batch["segment_ids"]) for outputs in (logits, others))
        return jnp.mean(symmetric_kl(*pair), axis=1)

    def target_shapes(self, items: Items, num_labels: int) -> Shapes:
        position = jax.ShapeDtypeStruct(items, jnp.int32)
        weights = jax.ShapeDtypeStruct(items, jnp.float32)
        return {"starts": position, "ends": position, "weights": weights}


def _tokens_last(
    logits_BL2: Float[Array, "B L 2"], segments_BL: Int[Array, "B L"]
) -> Float[Array, "B 2 L"]:
    """The logits of padding are out of the question."""
    return jnp.where(segments_BL[:, None] > 0, logits_BL2.swapaxes(1, 2), -1e9)


def symmetric_kl(logits: Float[Array, "*N C"], others: Float[Array, "*N C"]) -> Float[Array, "*N"]:
    """KL(p || q) + KL(q || p) over the last axis; each side's gradient takes the other as fixed.

    So the released code differentiates it: its two cross-entropies hold the probabilities fixed.
    """
    logp, logq = jax.nn.log_softmax(logits), jax.nn.log_softmax(others)

    def divergence(fixed, learner):
        fixed = jax.lax.stop_gradient(fixed)
        return jnp.sum(jnp.exp(fixed) * (fixed - learner), axis=-1)

    return divergence(logp, logq) + divergence(logq, logp)
