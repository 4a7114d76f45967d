"""Something every so many minutes, at steps that all processes agree on."""

import time
from collections.abc import Callable

from deberta_jax.parallel import processes


class Clocked:
    """Whether something is due by the clock of process 0.

    The processes are in step, so a number of steps is what they can agree on. Process 0 foretells
    from the speed so far at which step half of the rest of the interval is over; there all look at
    its clock again. That is about ten exchanges an interval, not one a step.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        """
        Args:
            seconds: the interval.
            clock: of this process; what counts is that of process 0.
        """
        self._seconds, self._clock = seconds, clock
        self._begun = clock()
        self._looked: tuple[int, float] | None = None
        self._next_look = 0

    def is_due(self, step: int) -> bool:
        """Whether it is due after `step`; called by all processes after every step."""
        if step < self._next_look:
            return False
        pause = int(processes.of_first(self._pause(step)))
        self._next_look = step + max(1, pause)
        return pause == 0

    def _pause(self, step: int) -> int:
        """Steps until the clock is looked at again; 0 where it is due now."""
        now = self._clock()
        left = self._begun + self._seconds - now
        before, self._looked = self._looked, (step, now)
        if left <= 0:
            self._begun = now
            return 0
        if before is None or step <= before[0]:
            return 1
        of_a_step = max((now - before[1]) / (step - before[0]), 1e-6)
        return max(1, int(left / of_a_step / 2))
