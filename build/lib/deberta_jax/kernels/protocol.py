"""What an attention implementation is: a name, the calls it supports, and its function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from deberta_jax.kernels.relative import Relative


class UnsupportedCall(NotImplementedError, ValueError):
    """The implementation that was selected by name does not support these shapes or types."""


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionCall:
    """The arguments of one attention.

    Attributes:
        query_BQHD: queries; Q = K, in order, unless `query_positions_BQ` gives their positions.
        key_BKHD: keys.
        value_BKHD: values.
        relative: the relative tables and the constant that maps distances to their rows; None for
            plain attention.
        query_segments_BQ: segment of each query; 0 is padding.
        key_segments_BK: segment of each key.
        query_positions_BQ: position of each query in the sequence of keys, in [0, K), in any order
            (the Enhanced Mask Decoder's masked tokens).
        dropout_rate: share of the attention probabilities dropped, in [0, 1).
        dropout_rng: key of that dropout; required where the rate is above 0.
        causal: whether a query sees no key after its own position.
        biases_3HD: added to queries, keys and values before anything else. Only implementations
            that fuse biases read them.
        first: item and head of the whole batch that the first ones here are; dropout depends on
            them, so that a part of a batch drops what it would drop in the whole.

    Raises:
        ValueError: the rate is out of range, or has no key.
    """

    query_BQHD: Float[Array, "B Q H D"]
    key_BKHD: Float[Array, "B K H D"]
    value_BKHD: Float[Array, "B K H D"]
    relative: Relative | None
    query_segments_BQ: Int[Array, "B Q"]
    key_segments_BK: Int[Array, "B K"]
    query_positions_BQ: Int[Array, "B Q"] | None = None
    dropout_rate: float = 0.0
    dropout_rng: jax.Array | None = None
    causal: bool = False
    biases_3HD: Float[Array, "3 H D"] | None = None
    first: tuple[Any, Any] = (0, 0)

    def __post_init__(self):
        rate = self.dropout_rate
        if not 0 <= rate < 1 or (rate and self.dropout_rng is None):
            raise ValueError(f"dropout {rate} must be in [0, 1), and above 0 it needs a key")

    @property
    def content(self) -> tuple[Array, Array, Array]:
        """Queries, keys and values."""
        return self.query_BQHD, self.key_BKHD, self.value_BKHD

    @property
    def segments(self) -> tuple[Array, Array]:
        """Segments of queries and keys."""
        return self.query_segments_BQ, self.key_segments_BK

    @property
    def tables(self) -> tuple[Array | None, Array | None]:
        """The relative keys (c2p) and relative queries (p2c), None where a term is off."""
        return (
            (None, None)
            if self.relative is None
            else (self.relative.key_RHD, self.relative.query_RHD)
        )


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute disentangled attention.

    Attributes:
        name: what `compute.attention` selects it by.
        attention: [B, Q, H, D] of a call that it supports, in the type of the values.
        supports: None for a call that it supports, else the reason why not, in one line.
        fuses: what it takes into its kernels, of "dropout", "biases" (of queries in order) and
            "positions" (queries at positions of their own).
        qkv_layout: the layout of a QKV projection that it reads without a copy: "3BLHD", or "BL3HD"
            (token by token).
    """

    name: str
    attention: Callable[[AttentionCall], Float[Array, "B Q H D"]]
    supports: Callable[[AttentionCall], str | None]
    fuses: frozenset[str] = frozenset()
    qkv_layout: str = "3BLHD"

    def require(self, call: AttentionCall) -> None:
        """Raises `UnsupportedCall` with the reason, unless the call is supported."""
        if reason := self.supports(call):
            raise UnsupportedCall(reason)
