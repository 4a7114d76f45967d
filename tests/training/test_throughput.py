"""Speeds and where time went: clocks that are set while a run goes on; an MFU's peak."""

import time

import pytest

from deberta_jax.training.throughput import Throughput


@pytest.mark.parametrize("shift", [-1e9, -3600.0, 0.0])
@pytest.mark.parametrize("when", ["between sessions", "in the session"])
def test_a_clock_that_is_set_back_makes_no_goodput_above_1(shift, when, monkeypatch):
    """Half of the time before is productive, and a session of no steps."""
    real = time.time

    def shifted():
        return real() + shift

    begun, productive = real() - 100, 50.0
    if when == "between sessions":
        monkeypatch.setattr(time, "time", shifted)
    throughput = Throughput(1.0, 1.0, None, begun, productive)
    monkeypatch.setattr(time, "time", shifted)
    goodput = throughput.report()["perf/goodput"]
    right = 1.0 if shift and when == "between sessions" else 0.5
    assert goodput == pytest.approx(right, abs=0.01) and goodput <= 1


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
