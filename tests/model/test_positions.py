"""Relative rows against the released bucket function and against the formula."""

import numpy as np
import pytest

from deberta_jax.model.positions import log_bucket, relative_rows
from tests.kernels import formula as reference_attention


@pytest.mark.parametrize("buckets, limit", [(256, 512), (32, 128), (16, 40)])
def test_log_bucket_is_transformers_own_inside_its_range(buckets, limit):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distance = np.arange(-(limit - 1), limit)
    want = make_log_bucket_position(torch.tensor(distance), buckets, limit).long().numpy()
    np.testing.assert_array_equal(log_bucket(distance, buckets, limit), want)


def test_far_distances_share_the_outermost_bucket():
    far = log_bucket(np.array([511, 512, 5000, -511, -512, -5000]), 256, 512)
    np.testing.assert_array_equal(far, [255, 255, 255, -255, -255, -255])


@pytest.mark.parametrize("buckets", [0, 256])
def test_rows_are_the_formula_s(buckets, seed):
    rng = np.random.default_rng(seed)
    i, j = rng.integers(0, 2000, (2, 500))
    span = buckets or 512
    want = [
        reference_attention.row(int(a), int(b), span, buckets, 512)
        for a, b in zip(i, j, strict=True)
    ]
    np.testing.assert_array_equal(relative_rows(i - j, span, buckets, 512), want)
