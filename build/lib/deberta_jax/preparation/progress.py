"""One line of progress now and then."""

import contextlib
import sys
import time
from collections.abc import Callable

Log = Callable[[str], None]
SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Reports documents and text per second, and the time left where the total is known."""

    def __init__(self, label: str, log: Log, total_characters: float = 0):
        self._label = label
        self._log = log
        self._total = total_characters
        self._start = self._last = time.monotonic()
        self.documents = 0
        self.characters = 0

    def add(self, *, documents: int = 0, characters: int = 0) -> None:
        self.documents += documents
        self.characters += characters
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            self._log(self._line(now))

    def finish(self) -> None:
        self._total = 0
        self._log(self._line(time.monotonic()))

    def _line(self, now: float) -> str:
        seconds = max(now - self._start, 1e-3)
        speed = self.characters / seconds
        line = (
            f"{self._label}: {self.documents:,} documents, "
            f"{self.characters / 1e6:.1f}M characters, {speed / 1e6:.1f}M/s, {seconds:.0f} s"
        )
        left = self._total - self.characters
        return f"{line}, about {left / speed:.0f} s left" if left > 0 and speed else line


def past_redirection(log: Log) -> Log:
    """`log` as it is called now, unaffected by a redirected standard output later on."""
    output = sys.stdout

    def straight(line: str) -> None:
        with contextlib.redirect_stdout(output):
            log(line)

    return straight
