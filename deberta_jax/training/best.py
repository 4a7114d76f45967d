"""The best checkpoint so far by a held-out metric, and when to stop waiting for a better one."""

import dataclasses
import math

from deberta_jax.errors import UserError


@dataclasses.dataclass
class Best:
    """What the evaluations so far amount to; `state` is kept in the checkpoints.

    Attributes:
        metric: the held-out metric that decides, the larger the better ("eval/loss" and others that
            end in "loss": the smaller). Empty: nothing is compared.
        patience: evaluations without a better one after which a run stops. 0: never.
        step: the step of the best evaluation.
        value: its metric.
        since: evaluations since.
    """

    metric: str
    patience: int = 0
    step: int | None = None
    value: float | None = None
    since: int = 0

    def __post_init__(self):
        if self.patience and not self.metric:
            raise UserError(f"train.patience is {self.patience}; it needs a train.best_metric")

    def update(self, step: int, metrics: dict[str, float]) -> bool:
        """Takes an evaluation; whether it is the best so far. The earlier of two equal ones is.

        One whose metric is not finite never is.

        Raises:
            UserError: the metric is none of those measured.
        """
        if not self.metric:
            return False
        if self.metric not in metrics:
            raise UserError(
                f"train.best_metric is {self.metric!r}; measured are {', '.join(sorted(metrics))}"
            )
        value = metrics[self.metric]
        sign = -1 if self.metric.endswith("loss") else 1
        worse = self.value is not None and sign * value <= sign * self.value
        if worse or not math.isfinite(value):
            self.since += 1
            return False
        self.step, self.value, self.since = step, value, 0
        return True

    @property
    def exhausted(self) -> bool:
        """Whether the last better evaluation is `patience` evaluations ago."""
        return 0 < self.patience <= self.since

    @property
    def state(self) -> dict:
        """What `restore` takes."""
        return {"step": self.step, "value": self.value, "since": self.since}

    def restore(self, state: dict | None) -> None:
        """Goes on from a checkpoint's `state`; from the beginning where it has none.

        A best value that is not finite, which version 0.2 could keep, is none.
        """
        self.step, self.value, self.since = None, None, 0
        if state and self.metric:
            self.since = state["since"]
            if state["value"] is not None and math.isfinite(state["value"]):
                self.step, self.value = state["step"], state["value"]
