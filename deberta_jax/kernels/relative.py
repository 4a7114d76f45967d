"""Projected relative embeddings, and their expansion from rows to distances."""

import dataclasses

import jax
import jax.numpy as jnp
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


def expand_rows(rows_RHD, distance_rows):
    """Relative rows -> a row for every distance, [2L - 1, H, D], without a gather."""
    if np.all(np.diff(distance_rows) == 1):  # a row a distance: the rows as they stand
        return rows_RHD[int(distance_rows[0]) : int(distance_rows[-1]) + 1]
    identity_RR = np.eye(rows_RHD.shape[0], dtype=np.float32)
    one_hot_WR = jnp.asarray(identity_RR[distance_rows], rows_RHD.dtype)
    return jnp.einsum("WR,RHD->WHD", one_hot_WR, rows_RHD)
