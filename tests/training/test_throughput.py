"""Speeds: an MFU is a share of a peak that was really there."""

import pytest

from deberta_jax.training.throughput import Throughput


def report(peak_flops):
    speeds = Throughput(1000, 1e6, peak_flops, begun=0.0, productive=0.0)
    for _ in range(3):
        speeds.count_step(lambda: None)
    return speeds.report()


def test_the_mfu_is_a_share_of_the_peak():
    metrics = report(1e18)
    assert metrics["perf/mfu"] == pytest.approx(metrics["perf/tokens_per_second"] * 1e6 / 1e18)


@pytest.mark.parametrize("peak", [None, 1.0])
def test_no_mfu_without_a_peak_or_above_it(peak):
    """A CPU's peak is measured; beside other programs it may be less than what a step reaches."""
    metrics = report(peak)
    assert metrics["perf/tokens_per_second"] > 0 and "perf/mfu" not in metrics
