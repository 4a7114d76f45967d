"""Disentangled attention written straight from the formula, in float64, with loops and gathers."""

import numpy as np


def bucket(distance, buckets, max_relative_positions):
    """Microsoft's make_log_bucket_position for one distance, after its clamp."""
    limit = max_relative_positions - 1
    distance = max(-limit, min(limit, distance))
    mid = buckets // 2
    if abs(distance) <= mid:
        return distance
    far = np.ceil(
        np.log(np.float32(abs(distance) / mid)) / np.log(np.float32(limit / mid)) * (mid - 1)
    )
    return int(np.sign(distance) * (far + mid))


def row(i, j, span, buckets, max_relative_positions):
    """delta(i, j)."""
    distance = i - j
    if buckets:
        distance = bucket(distance, buckets, max_relative_positions)
    return int(min(max(distance + span, 0), 2 * span - 1))


def attention(
    query, key, value, relative_key, relative_query, delta, segments_q, segments_k, places
):
    """[B, Q, H, D]; `delta(i, j)` gives the relative row, `places` [B, Q] where queries stand."""
    batch, queries, heads, size = query.shape
    keys = key.shape[1]
    terms = 1 + (relative_key is not None) + (relative_query is not None)
    out = np.zeros((batch, queries, heads, size))
    for b in range(batch):
        for q in range(queries):
            seen = [
                j
                for j in range(keys)
                if segments_k[b, j] > 0 and segments_k[b, j] == segments_q[b, q]
            ]
            if not seen:
                continue
            for h in range(heads):
                scores = []
                for j in seen:
                    r = delta(int(places[b, q]), j)
                    score = query[b, q, h] @ key[b, j, h]
                    if relative_key is not None:
                        score += query[b, q, h] @ relative_key[r, h]
                    if relative_query is not None:
                        score += relative_query[r, h] @ key[b, j, h]
                    scores.append(score / np.sqrt(size * terms))
                weights = np.exp(np.array(scores) - max(scores))
                out[b, q, h] = (weights / weights.sum()) @ value[b, seen, h]
    return out
