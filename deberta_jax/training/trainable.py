"""What training asks of an objective; `objectives.Objective` has it, and more."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from deberta_jax.training.config import OptimizerConfig

Scalars = dict[str, jax.Array]


class Stage(NamedTuple):
    """One update of a step. The stages of a step follow each other on the same batch.

    Attributes:
        groups: the groups of parameters that it updates.
        loss: `(params, batch, weights, rng) -> (loss, (sums, additions))`, in training. The
            additions are arrays [B, ...], by name, that the batch of later stages has as well.
    """

    groups: tuple[str, ...]
    loss: Callable[..., tuple[jax.Array, tuple[Scalars, dict[str, jax.Array]]]]


class Trainable(Protocol):
    """See `objectives.base.Objective` for each."""

    groups: tuple[str, ...]

    def init(self, rng: jax.Array) -> Any: ...

    def depths(self, params: Any) -> Any: ...

    def parameter_groups(self, params: Any) -> Any: ...

    def optimizer_config(self, group: str, config: OptimizerConfig) -> OptimizerConfig: ...

    def stages(self) -> tuple[Stage, ...]: ...

    def weights(self, batch: dict[str, jax.Array]) -> Scalars: ...

    def loss(
        self, params, batch, weights: Scalars, rng: jax.Array | None, train: bool
    ) -> tuple[jax.Array, Scalars]: ...

    def observe(self, params: Any) -> Scalars: ...

    def summarize(self, sums: Scalars, weights: Scalars) -> Scalars: ...
