"""What each task's head is trained by: losses of its items, and how far two outputs are apart.

A loss and a divergence are given an item (a text, or a token of it) each; `weights` say how much it
counts. Everything is computed in float32.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp


class Losses(NamedTuple):
    """What a batch's items lose.

    Attributes:
        loss: float32 [B] or [B, L].
        correct: float32, likewise: 1 where the highest logit is the right one; None for numbers.
    """

    loss: jax.Array
    correct: jax.Array | None


class Criterion(Protocol):
    """A task's loss."""

    def losses(self, logits, batch) -> Losses:
        """What each item loses."""

    def divergence(self, logits, others, batch):
        """How far apart two outputs for the same items are, each item's: SiFT's loss."""

    def target_shapes(self, items: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
        """Targets and `weights` of a batch of so many items."""


def _labels(items, dtype):
    weights = jax.ShapeDtypeStruct(items, jnp.float32)
    return {"labels": jax.ShapeDtypeStruct(items, dtype), "weights": weights}


class Classes:
    """One of some classes for every item: logits [..., C] against `labels` [...]."""

    def losses(self, logits, batch):
        labels = batch["labels"]
        logp = jax.nn.log_softmax(logits)
        loss = -jnp.take_along_axis(logp, labels[..., None], axis=-1)[..., 0]
        return Losses(loss, (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))

    def divergence(self, logits, others, batch):
        return symmetric_kl(logits, others)

    def target_shapes(self, items):
        return _labels(items, jnp.int32)


class Numbers:
    """A number for every item: squared error of logits [B, 1] against `labels` [B]."""

    def losses(self, logits, batch):
        return Losses((logits[:, 0] - batch["labels"]) ** 2, None)

    def divergence(self, logits, others, batch):
        return (logits[:, 0] - others[:, 0]) ** 2

    def target_shapes(self, items):
        return _labels(items, jnp.float32)


class Spans:
    """Start and end of an answer: the mean of two cross-entropies over the tokens, [B, L, 2]."""

    def losses(self, logits, batch):
        logits_B2L = _tokens_last(logits, batch["segment_ids"])
        targets_B2 = jnp.stack([batch["starts"], batch["ends"]], axis=1)
        logp = jax.nn.log_softmax(logits_B2L)
        loss_B2 = -jnp.take_along_axis(logp, targets_B2[..., None], axis=-1)[..., 0]
        right_B = jnp.all(jnp.argmax(logits_B2L, axis=-1) == targets_B2, axis=1)
        return Losses(jnp.mean(loss_B2, axis=1), right_B.astype(jnp.float32))

    def divergence(self, logits, others, batch):
        pair = (_tokens_last(outputs, batch["segment_ids"]) for outputs in (logits, others))
        return jnp.mean(symmetric_kl(*pair), axis=1)

    def target_shapes(self, items):
        position = jax.ShapeDtypeStruct(items, jnp.int32)
        weights = jax.ShapeDtypeStruct(items, jnp.float32)
        return {"starts": position, "ends": position, "weights": weights}


def _tokens_last(logits_BL2, segments_BL):
    """[B, 2, L], padding out of the question."""
    return jnp.where(segments_BL[:, None] > 0, logits_BL2.swapaxes(1, 2), -1e9)


def symmetric_kl(logits, others):
    """KL(p || q) + KL(q || p) over the last axis; each side's gradient takes the other for given.

    So the released code differentiates it: its two cross-entropies hold the probabilities fixed.
    """
    logp, logq = jax.nn.log_softmax(logits), jax.nn.log_softmax(others)

    def divergence(given, learner):
        given = jax.lax.stop_gradient(given)
        return jnp.sum(jnp.exp(given) * (given - learner), axis=-1)

    return divergence(logp, logq) + divergence(logq, logp)
