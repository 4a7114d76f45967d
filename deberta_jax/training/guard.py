"""Whether a step counts: judged inside the compiled step, so that the host waits for nothing.

A step that is skipped leaves parameters and optimizer state, with its own count of updates, as they
were. Its number still counts: the step's random key, the input's position and the end of the run
are those of an undisturbed run. So the result is that of the same steps without the bad ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.training.config import GuardConfig
from deberta_jax.training.trainable import Scalars

# A standard deviation counts as at least this share of the mean: rounding is no spike.
_LEAST_DEVIATION = 0.01


class GuardState(NamedTuple):
    """What the guard knows of the steps so far, on the devices.

    Attributes:
        in_a_row: steps skipped since the last that counted.
        skipped: steps skipped in the run.
        counted: steps that the statistics are of.
        mean: the running mean of each watched quantity; empty where nothing is a spike.
        variance: likewise.
    """

    in_a_row: Int[Array, ""] | np.int32
    skipped: Int[Array, ""] | np.int32
    counted: Int[Array, ""] | np.int32
    mean: Mapping[str, Float[Array, ""] | np.float32]
    variance: Mapping[str, Float[Array, ""] | np.float32]


class Guard:
    """The rule by which a run's steps are judged."""

    def __init__(self, config: GuardConfig, watched: Sequence[str]):
        """
        Args:
            config: its settings.
            watched: metrics of a step that must be finite: its loss, the norm of each gradient.
        """
        self.config, self.watched = config, tuple(watched)

    def initial(self) -> GuardState:
        """The state before the first step."""
        zeros = dict.fromkeys(self.watched if self.config.spike else (), np.float32(0))
        return GuardState(np.int32(0), np.int32(0), np.int32(0), zeros, dict(zeros))

    def judge(self, metrics: Scalars, state: GuardState) -> tuple[Bool[Array, ""], GuardState]:
        """(whether the step counts, the state after it)."""
        values = {name: metrics[name] for name in self.watched}
        counts = jnp.all(jnp.isfinite(jnp.stack(list(values.values()))))
        spikes = [self._is_spike(values[name], state, name) for name in state.mean]
        if spikes:
            counts &= ~jnp.any(jnp.stack(spikes))
        # Exact over the first steps, then exponential.
        share = 1 / jnp.minimum(state.counted + 1, self.config.spike_window).astype(jnp.float32)
        mean, variance = {}, {}
        for name in state.mean:
            away = values[name] - state.mean[name]
            mean[name] = state.mean[name] + share * away
            variance[name] = (1 - share) * (state.variance[name] + share * away**2)
        after = GuardState(
            in_a_row=jnp.int32(0),
            skipped=jnp.asarray(state.skipped),
            counted=state.counted + 1,
            mean=mean,
            variance=variance,
        )
        instead = state._replace(in_a_row=state.in_a_row + 1, skipped=state.skipped + 1)
        return counts, choose(counts, after, instead)

    def _is_spike(self, value: Array, state: GuardState, name: str) -> Bool[Array, ""]:
        mean = state.mean[name]
        deviation = jnp.maximum(jnp.sqrt(state.variance[name]), _LEAST_DEVIATION * jnp.abs(mean))
        far = value > mean + self.config.spike * deviation
        return far & (state.counted >= self.config.spike_window)


def choose(first: Bool[Array, ""], tree: Any, other: Any) -> Any:
    """`tree` if `first`, else `other`.

    An elementwise select, which XLA fuses into the update that made the tree: it reads what the
    update reads. A branch (`lax.cond`) would be a barrier between the gradient and the update.
    """
    return jax.tree.map(lambda x, y: jnp.where(first, x, y), tree, other)


def gradient_norms(grads: Any) -> Float[Array, " N"]:
    """The norm of each array of a gradient, in the tree's order.

    The compiler has its sums of squares already, for the norms of the groups.
    """
    return jnp.stack([optax.tree.norm(leaf) for leaf in jax.tree.leaves(grads)])


def to_json(state: GuardState) -> dict[str, Any]:
    """The state as a checkpoint keeps it; float32 goes through JSON unchanged."""
    return jax.tree.map(lambda leaf: leaf.item(), jax.device_get(state))._asdict()


def from_json(values: Mapping[str, Any] | None, initial: GuardState) -> GuardState:
    """The state that a checkpoint holds.

    Args:
        values: as `to_json` made them; None for a checkpoint that is older than the guard.
        initial: the state to begin with. Statistics begin anew where they are of other quantities.
    """
    if not values:
        return initial
    counters = initial._replace(
        in_a_row=np.int32(values["in_a_row"]), skipped=np.int32(values["skipped"])
    )
    if set(values["mean"]) != set(initial.mean):
        return counters
    return counters._replace(
        counted=np.int32(values["counted"]),
        mean={name: np.float32(values["mean"][name]) for name in initial.mean},
        variance={name: np.float32(values["variance"][name]) for name in initial.variance},
    )
