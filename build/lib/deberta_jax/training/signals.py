"""Stopping on request: SIGTERM, SIGINT, and the preemption notice of a cluster."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax


@contextmanager
def stop_requests(preempted: Callable[[int], bool]) -> Iterator[Callable[[int], bool]]:
    """Yields `step -> bool`: whether the run is to stop after that step. All processes agree.

    A second SIGINT interrupts at once.

    Args:
        preempted: `step -> bool`, which several processes ask, for they must agree on the step:
            there SIGTERM is left to JAX's preemption service.
    """
    received: list[int] = []

    def remember(number, frame):
        del frame
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    alone = jax.process_count() == 1
    numbers = (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,)
    before = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield lambda step: (alone and bool(received)) or preempted(step)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
