"""Where time went, on clocks that are set while a run goes on."""

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
