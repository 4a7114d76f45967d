"""Projected relative embeddings."""

import dataclasses

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Relative:
    """The projected relative embeddings that one layer attends with.

    Either table may be None: its term is then absent, and so is its share of the scale.

    Attributes:
        key_RHD: relative keys, read by c2p (Qc_i . Kr_delta).
        query_RHD: relative queries, read by p2c (Qr_delta . Kc_j).
        distance_rows: int [2L - 1], a constant: the row of each distance i - j, ascending from
            -(L - 1).
    """

    key_RHD: jax.Array | None
    query_RHD: jax.Array | None
    distance_rows: np.ndarray
