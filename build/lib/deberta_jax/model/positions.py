"""Relative positions: from distances between tokens to rows of the relative embedding table."""

import numpy as np


def log_bucket(distance: np.ndarray, buckets: int, max_relative_positions: int) -> np.ndarray:
    """Signed logarithmic buckets of v2 and v3: exact up to buckets/2, logarithmic beyond.

    Distances are first clamped to +-(max_relative_positions - 1), as Microsoft's later code does,
    so that far tokens share the outermost bucket. Without it (Microsoft's package 0.1.12, and
    `transformers`) distances of -512 and less read row 0, which no training at 512 ever touched.

    Args:
        distance: integers, query position minus key position.
        buckets: buckets each side (256 as released).
        max_relative_positions: the distance at which the buckets end (512 as released).

    Returns:
        int64 buckets in (-buckets, buckets), in the shape of `distance`.
    """
    limit = max_relative_positions - 1
    distance = np.clip(np.asarray(distance, np.int64), -limit, limit)
    mid = buckets // 2
    # float32 as released: a wider type would round some distances into the next bucket.
    magnitude = np.maximum(np.abs(distance), mid).astype(np.float32)
    ratio = np.log(magnitude / np.float32(mid)) / np.log(np.float32(limit / mid))
    far = np.ceil(ratio * np.float32(mid - 1)) + mid
    return np.where(np.abs(distance) <= mid, distance, np.sign(distance) * far).astype(np.int64)


def relative_rows(distance: np.ndarray, span: int, buckets: int, max_relative_positions: int):
    """delta(i, j) for distances i - j: the row of the relative table, in [0, 2 * span).

    Both terms, c2p and p2c, read the row of (query - key), as every released checkpoint does; the
    paper's Eq. 4 writes delta(j, i) for p2c.
    """
    distance = np.asarray(distance, np.int64)
    if buckets:
        distance = log_bucket(distance, buckets, max_relative_positions)
    return np.clip(distance + span, 0, 2 * span - 1)


def distance_rows(config, query_length: int, key_length: int) -> np.ndarray:
    """The relative row of every distance that occurs, from -(key_length - 1) to query_length - 1.

    Returns int64 [query_length + key_length - 1], ascending in distance: a constant of the
    compiled program, through which relative rows are expanded to distances once a layer.
    """
    distance = np.arange(-(key_length - 1), query_length)
    return relative_rows(
        distance, config.relative_span, config.position_buckets, config.max_relative_positions
    )
