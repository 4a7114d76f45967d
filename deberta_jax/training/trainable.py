"""What training asks of an objective; `objectives.Objective` has it, and more."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key, Shaped

from deberta_jax.training.config import OptimizerConfig

# Arrays by name; the first axis of each is that of the rows.
Batch = dict[str, Shaped[Array, "B ..."]]
# Sums over the rows of a batch, and what becomes of them.
Scalars = dict[str, Float[Array, ""]]


class Stage(NamedTuple):
    """One update of a step. The stages of a step follow each other on the same batch.

    Attributes:
        groups: the groups of parameters that it updates.
        loss: `(params, batch, weights, rng) -> (loss, (sums, additions))`, in training. The
            additions are arrays [B, ...], by name, that the batch of later stages has as well.
    """

    groups: tuple[str, ...]
    loss: Callable[..., tuple[Float[Array, ""], tuple[Scalars, Batch]]]


@runtime_checkable
class Trainable(Protocol):
    """See `objectives.base.Objective` for each."""

    groups: tuple[str, ...]

    def init(self, rng: Key[Array, ""]) -> Any: ...

    def depths(self, params: Any) -> Any: ...

    def parameter_groups(self, params: Any) -> Any: ...

    def optimizer_config(self, group: str, config: OptimizerConfig) -> OptimizerConfig: ...

    def stages(self) -> tuple[Stage, ...]: ...

    def weights(self, batch: Batch) -> Scalars: ...

    def loss(
        self,
        params: Any,
        batch: Batch,
        weights: Scalars,
        rng: Key[Array, ""] | None,
        train: bool,
    ) -> tuple[Float[Array, ""], Scalars]: ...

    def observe(self, params: Any) -> Scalars: ...

    def summarize(self, sums: Scalars, weights: Scalars) -> Scalars: ...
