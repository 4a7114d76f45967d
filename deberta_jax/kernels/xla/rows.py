"""Relative rows by distance, where neighbouring distances share rows: copies, not one big matmul.

Rows ascend with the distance, so the table falls into runs: rows read once (copied as they stand),
rows read by very many distances (broadcast), and short stretches between (a small one-hot matmul).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Distances of a small one-hot matmul, at most; runs of as many are copied or broadcast instead.
STRETCH = 64


def expand(table_RHD: Float[Array, "R H D"], distance_rows: np.ndarray) -> Float[Array, "H W D"]:
    """The row of each distance, heads first: [H, W, D] for W `distance_rows`, without a gather.

    Args:
        table_RHD: relative rows.
        distance_rows: int [W], ascending by 0 or 1.
    """
    table_HRD = table_RHD.swapaxes(0, 1)
    counts = np.bincount(distance_rows, minlength=table_RHD.shape[0])
    runs = _runs(counts)
    parts = jax.lax.split(table_HRD, [len(run) for run in runs], axis=1)
    return jnp.concatenate(
        [_repeated(part, run) for part, run in zip(parts, runs, strict=True)], axis=1
    )


def _runs(counts: np.ndarray) -> list[list[int]]:
    """`counts` cut into runs: of equal counts where that is cheap to repeat, else of short sums."""
    runs: list[list[int]] = []
    stretch: list[int] = []
    for count, group in itertools.groupby(counts):
        alike = list(group)
        if count == 0 or (count * len(alike) >= STRETCH and (count == 1 or len(alike) == 1)):
            runs, stretch = [*runs, stretch, alike], []
            continue
        for _ in alike:
            if sum(stretch) + count > STRETCH:
                runs, stretch = [*runs, stretch], []
            stretch.append(count)
    return [run for run in [*runs, stretch] if run]


def _repeated(part_HRD: Float[Array, "H R D"], counts: list[int]) -> Float[Array, "H W D"]:
    """Each row of a part `counts` times."""
    heads, rows, size = part_HRD.shape
    if len(set(counts)) == 1:
        repeated_HRCD = jnp.broadcast_to(part_HRD[:, :, None], (heads, rows, counts[0], size))
        return repeated_HRCD.reshape(heads, rows * counts[0], size)
    one_hot_WR = np.repeat(np.eye(rows, dtype=part_HRD.dtype), counts, axis=0)
    return jnp.einsum("WR,HRD->HWD", one_hot_WR, part_HRD)
