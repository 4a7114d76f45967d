"""What training asks of an objective; `objectives.Objective` has it, and more."""

from typing import Any, Protocol

import jax

Scalars = dict[str, jax.Array]


class Trainable(Protocol):
    """See `objectives.base.Objective` for each."""

    def init(self, rng: jax.Array) -> Any: ...

    def depths(self, params: Any) -> Any: ...

    def weights(self, batch: dict[str, jax.Array]) -> Scalars: ...

    def loss(
        self, params, batch, weights: Scalars, rng: jax.Array | None, train: bool
    ) -> tuple[jax.Array, Scalars]: ...

    def summarize(self, sums: Scalars, weights: Scalars) -> Scalars: ...
