"""What fine-tuning objectives can be told."""

import dataclasses

from deberta_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """The head's regularisation, and SiFT (paper, section 4.3: virtual adversarial training)."""

    # Dropout before the classifier.
    classifier_dropout: float = 0.1
    # Begin with random weights of the checkpoint's architecture: what pre-training is held against.
    fresh_weights: bool = False
    # Weight of SiFT's loss beside the task's. 0: no SiFT; the paper's is 5 (3 for v3 xsmall).
    sift_weight: float = 0.0
    # Ascent steps that a perturbation takes, each one more forward and backward pass.
    sift_steps: int = 1
    # Length of an ascent step: the most that a token's normalised embedding changes by in it.
    sift_learning_rate: float = 1e-4
    # Standard deviation of the first perturbation, which is clipped at twice as much.
    sift_perturbation: float = 1e-2

    def __post_init__(self):
        if not 0 <= self.classifier_dropout < 1:
            raise UserError(
                f"finetune.classifier_dropout is {self.classifier_dropout}; it must be from 0 to 1"
            )
        if self.sift_weight < 0 or self.sift_steps < 0:
            raise UserError(
                f"finetune.sift_weight {self.sift_weight} and finetune.sift_steps "
                f"{self.sift_steps} must be 0 or more"
            )
