"""Durations as a person states them: "10000 steps", "2.5 epochs", "1B tokens", "10%"."""

import dataclasses
import re

from deberta_jax.errors import UserError

_FORM = re.compile(
    r"\s*([0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*([kMB]?)\s*(steps?|tokens?|epochs?|%)?\s*"
)
_CLOCK = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(second|minute|hour)s?\s*")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}
_MULTIPLES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class StepUnits:
    """What turns a duration into steps.

    Attributes:
        tokens_per_step: tokens in one global batch.
        steps_per_epoch: steps in one pass over the training data.
        total_steps: steps of the whole run, which percentages refer to; UNKNOWN before they are.
    """

    tokens_per_step: float
    steps_per_epoch: float
    total_steps: int = UNKNOWN

    def with_total(self, field: str, duration: str) -> "StepUnits":
        """The same units for a run of that duration."""
        return dataclasses.replace(self, total_steps=self.steps(field, duration))

    def steps(self, field: str, duration: str) -> int:
        """Steps in `duration`, rounded; at least 1 unless the duration is 0.

        Raises:
            UserError: naming `field`, where the text is no duration.
        """
        match = _FORM.fullmatch(duration)
        if not match:
            raise UserError(
                f"{field} is {duration!r}; it must be a duration such as '10k steps', "
                f"'2.5 epochs', '1B tokens' or '10%'"
            )
        unit = (match[3] or "steps").rstrip("s")
        if unit == "%" and self.total_steps == UNKNOWN:
            raise UserError(f"{field} is {duration!r}; here it needs steps, tokens or epochs")
        amount = float(match[1].replace("_", "")) * _MULTIPLES[match[2]]
        steps = {
            "step": lambda: amount,
            "token": lambda: amount / self.tokens_per_step,
            "epoch": lambda: amount * self.steps_per_epoch,
            "%": lambda: amount / 100 * self.total_steps,
        }[unit]()
        return max(1, round(steps)) if amount else 0


def clock_seconds(text: str) -> float:
    """Seconds in "15 minutes", "2 hours", "90 seconds"; 0 where the text is no such time."""
    match = _CLOCK.fullmatch(text)
    return float(match[1]) * _SECONDS[match[2]] if match else 0.0
