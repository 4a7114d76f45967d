"""The settings of objectives that have some of their own."""

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


SHARINGS = ("gdes", "es", "nes")


@dataclasses.dataclass(frozen=True)
class RtdConfig:
    """Replaced-token detection (DeBERTaV3, arXiv 2111.09543, section 3)."""

    # Layers of the generator, which is as wide as the discriminator. 0: half of its layers.
    generator_layers: int = 0
    # Which word embeddings the discriminator reads: "gdes", the generator's without their gradient
    # plus its own difference; "es", the generator's; "nes", its own.
    sharing: str = "gdes"
    # Update the generator, then the discriminator, each with its own clip and Adam state (as
    # released). False: one update by the sum of both losses.
    decoupled: bool = True
    # What the discriminator's loss counts beside the generator's: 50 in the paper, 10 in the
    # released script. Decoupled, it acts through the clip and Adam's epsilon alone.
    discriminator_weight: float = 50.0
    # Peak learning rate of the discriminator where updates are decoupled. 0: the optimizer's.
    discriminator_learning_rate: float = 0.0
    # Tokens are drawn from softmax(logits / temperature).
    temperature: float = 1.0
    # Whether special tokens and unused rows of the table may be drawn, as released.
    sample_special: bool = True

    def __post_init__(self):
        if self.sharing not in SHARINGS:
            raise UserError(f"rtd.sharing is {self.sharing!r}; it must be one of {SHARINGS}")
        if not self.temperature > 0:
            raise UserError(f"rtd.temperature is {self.temperature}; it must be above 0")
        for field in ("generator_layers", "discriminator_weight", "discriminator_learning_rate"):
            if not getattr(self, field) >= 0:
                raise UserError(f"rtd.{field} is {getattr(self, field)}; it must be 0 or more")
        if self.discriminator_learning_rate and not self.decoupled:
            raise UserError(
                "rtd.discriminator_learning_rate is set, but rtd.decoupled is False: joint updates "
                "have one learning rate"
            )
