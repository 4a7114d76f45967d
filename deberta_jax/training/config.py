"""What the training loop and the optimizer can be told."""

import dataclasses
import math
import re

from deberta_jax.errors import UserError

# What may follow when too many steps in a row are skipped.
ACTIONS = ("stop", "rollback")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule. Durations: "10k steps", "2.5 epochs", "1B tokens", "10%"."""

    # Peak learning rate.
    learning_rate: float = 1e-4
    # After the warm-up: "linear", "cosine", "rsqrt", or "wsd" (warm-up, stable, decay).
    schedule: str = "linear"
    # Duration of the linear warm-up from 0.
    warmup: str = "10k steps"
    # Duration of the final decay of "wsd" and "rsqrt"; the other schedules decay all the way.
    decay: str = "10%"
    # What the learning rate ends at, as a share of the peak.
    final_share: float = 0.0
    # Adam's decay rate of the gradient's mean.
    b1: float = 0.9
    # Adam's decay rate of the gradient's square.
    b2: float = 0.999
    # Adam's epsilon, outside the square root.
    eps: float = 1e-6
    # Divide by 1 - b^t. The released optimizer does not.
    bias_correction: bool = True
    # Decoupled weight decay; never on biases and LayerNorm weights.
    weight_decay: float = 0.01
    # Modules or parameters by name ("delta", "relative_embeddings") that do not decay either.
    no_decay: tuple[str, ...] = ()
    # Factor from a layer's learning rate to that of the layer below it. 1: all learn alike.
    layer_decay: float = 1.0
    # Largest norm of the whole gradient; a larger one is scaled down. 0: no limit.
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """Which steps are skipped, and what follows when too many are."""

    # Steps skipped in a row after which `then` happens. A step is skipped if its loss or the norm
    # of a gradient is not finite, or is a spike.
    patience: int = 10
    # "stop": the run ends with exit status 3. "rollback": it continues from its newest checkpoint,
    # without the batches read since.
    then: str = "stop"
    # Rollbacks in a run; the next one stops it.
    rollbacks: int = 3
    # A loss, or the norm of a gradient, is a spike if it exceeds its running mean by more than so
    # many standard deviations. 0: nothing is a spike.
    spike: float = 0.0
    # Steps that the running mean covers; before so many steps are done nothing is a spike.
    spike_window: int = 100
    # Skipped steps that are written to `anomalies` in the workdir, with batch and norms. 0: none.
    bundles: int = 5

    def __post_init__(self):
        if self.then not in ACTIONS:
            raise UserError(f"guard.then is {self.then!r}; it must be one of {ACTIONS}")
        least = {"patience": 1, "rollbacks": 0, "spike_window": 2, "bundles": 0}
        for field, number in least.items():
            if getattr(self, field) < number:
                raise UserError(
                    f"guard.{field} is {getattr(self, field)}; it must be {number} or more"
                )
        if not 0 <= self.spike < math.inf:
            raise UserError(f"guard.spike is {self.spike}; it must be 0 or more")


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """What is traced for XProf (TensorBoard's profile plug-in)."""

    # Steps whose trace is written to `profile` in the workdir: "10:15" begins after step 10 of the
    # run and ends after step 15. Empty: none.
    steps: str = ""

    def __post_init__(self):
        if self.steps:
            self.bounds()

    def bounds(self) -> tuple[int, int] | None:
        """(first, last) of `steps`."""
        if not self.steps:
            return None
        match = re.fullmatch(r"(\d+):(\d+)", self.steps)
        if not match or int(match[1]) >= int(match[2]):
            raise UserError(
                f"profile.steps is {self.steps!r}; it must be FIRST:LAST, such as '10:15'"
            )
        return int(match[1]), int(match[2])


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how much at a time, and what is written when."""

    # A checkpoint to begin with (released, exported, or a run's workdir). Empty: random weights.
    init: str = ""
    # Parts of a masked LM that are made anew although `init` has them: "lm_head", the head that
    # predicts tokens, "position_embeddings", the mask decoder's table. What `init` lacks is new.
    new_parts: tuple[str, ...] = ()
    # Length of the run.
    duration: str = "1M steps"
    # Sequences in a step, over all devices.
    batch_size: int = 256
    # Parts a step's batch is computed in, one after another (gradient accumulation).
    microbatches: int = 1
    # How often metrics are written and the progress line moves.
    log_every: str = "100 steps"
    # How often the held-out loss is measured; also done at the end. "0": only at the end.
    eval_every: str = "5k steps"
    # Held-out batches measured each time. 0: the whole held-out split.
    eval_batches: int = 0
    # How often a checkpoint is written, in steps or as "15 minutes"; also done at the end and when
    # told to stop.
    checkpoint_every: str = "5k steps"
    # How often the norms of weights, gradients and updates are written, layer by layer. "0": never.
    norms_every: str = "0"
    # Checkpoints kept, the latest ones.
    keep_checkpoints: int = 2
    # The held-out metric by which the best checkpoint is kept too ("eval/accuracy"). Empty: none.
    best_metric: str = ""
    # Evaluations without a better one after which a run stops early. 0: never.
    patience: int = 0
    # Seconds without any progress (input, step, save) after which a process ends with exit status
    # 142 and the stack traces of its threads; four times as many while it compiles. 0: never.
    watchdog_seconds: int = 1200
    # Seconds of silence after which a process of the job counts as dead, and the others end.
    heartbeat_seconds: int = 30
    # Seconds that the processes of a job wait for the last of them at the start.
    initialization_timeout: int = 1800

    def __post_init__(self):
        for field, least in (
            ("watchdog_seconds", 0),
            ("heartbeat_seconds", 1),
            ("initialization_timeout", 1),
        ):
            if getattr(self, field) < least:
                raise UserError(
                    f"train.{field} is {getattr(self, field)}; it must be {least} or more"
                )
