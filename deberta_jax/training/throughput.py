"""Where a session's time goes: steps, waiting for input, compilation, evaluation, checkpoints."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WAITS = ("input", "compile", "eval", "checkpoint")


class Throughput:
    """Measures wall-clock time between two reports; the one place that knows speeds.

    The first step of a session is left out of speeds, for it compiles. So is the time until a step
    with a batch of new shapes is handed to the devices.

    Attributes:
        productive: seconds of steps over all sessions, without waiting for input.
    """

    def __init__(
        self,
        tokens_per_step: float,
        flops_per_token: float,
        peak_flops: float | None,
        begun: float,
        productive: float,
    ):
        """
        Args:
            tokens_per_step: tokens in a global batch.
            flops_per_token: model FLOPs of one of them, forward and backward.
            peak_flops: FLOP/s of all devices together, which the MFU is a share of; None: no MFU.
            begun: Unix time when the run's first session began. A clock that has been set since
                makes the goodput no more than 1.
            productive: as it was when this session began.
        """
        self._tokens_per_step, self._flops_per_token = tokens_per_step, flops_per_token
        self._peak_flops, self.productive = peak_flops, productive
        # Wall-clock time counts between sessions alone; within this one, monotonic time.
        self._seconds_before = max(time.time() - begun, productive, 0.0)
        self._began = time.perf_counter()
        self._since: float | None = None
        self._steps, self._compiled = 0, set[tuple]()
        self._waits = dict.fromkeys(WAITS, 0.0)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Time inside is waited for one of `WAITS`; "input" is part of a step."""
        start = time.perf_counter()
        yield
        self._waits[what] += time.perf_counter() - start

    @contextmanager
    def dispatching(self, shapes: tuple) -> Iterator[None]:
        """A step with a batch of these shapes is handed to the devices inside."""
        start = time.perf_counter()
        yield
        if shapes not in self._compiled:
            self._compiled.add(shapes)
            self._waits["compile"] += time.perf_counter() - start

    def count_step(self, wait: Callable[[], object]) -> None:
        """A step is dispatched; `wait()` returns when it is done. Only the first one is awaited."""
        if self._since is None:
            wait()
            self._since = time.perf_counter()
            self._waits = dict.fromkeys(WAITS, 0.0)
        else:
            self._steps += 1

    def report(self) -> dict[str, float]:
        """Metrics of the time since the last report, which begins anew.

        steps and tokens per second, seconds of a step and of its input, MFU; seconds of evaluation
        and of checkpoints; the goodput, the share of the time since the run began that was spent
        on steps.
        """
        now, waits = time.perf_counter(), self._waits
        seconds = now - (now if self._since is None else self._since)
        seconds -= waits["compile"] + waits["eval"] + waits["checkpoint"]
        self.productive += seconds - waits["input"]
        metrics = {}
        if self._steps:
            speed = self._steps * self._tokens_per_step / seconds
            metrics["perf/steps_per_second"] = self._steps / seconds
            metrics["perf/tokens_per_second"] = speed
            metrics["perf/step_seconds"] = seconds / self._steps
            metrics["perf/input_seconds"] = waits["input"] / self._steps
            if self._peak_flops:
                mfu = speed * self._flops_per_token / self._peak_flops
                # Nothing is faster than its peak: that was measured while others ran, too.
                if mfu <= 1:
                    metrics["perf/mfu"] = mfu
        metrics["perf/eval_seconds"] = waits["eval"]
        metrics["perf/checkpoint_seconds"] = waits["checkpoint"]
        seconds = self._seconds_before + time.perf_counter() - self._began
        metrics["perf/goodput"] = self.productive / max(1e-9, seconds)
        self._since, self._steps = time.perf_counter(), 0
        self._waits = dict.fromkeys(WAITS, 0.0)
        return metrics
