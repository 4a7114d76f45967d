"""How a model is computed. It changes speed, memory and rounding; never what a checkpoint means."""

import dataclasses

from deberta_jax.errors import UserError
from deberta_jax.kernels import IMPLEMENTATIONS

_CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "full"),
    "attention": ("auto", *IMPLEMENTATIONS),
}


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """What may change from run to run, and within one, on the same parameters.

    Raises `UserError` for a value that there is not.
    """

    # Type that activations are computed in; parameters are always float32.
    dtype: str = "float32"
    # What a layer's backward pass recomputes: "none"; "dots", all but matmuls, attention and sums
    # that are normalised; "full".
    remat: str = "none"
    # The attention implementation; "auto" takes the fastest for the platform.
    attention: str = "auto"
    # Layers of one trip of the loop over layers. All of them make a program that runs faster,
    # for nothing is stacked, and compiles many times longer.
    unroll: int = 1

    def __post_init__(self):
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                raise UserError(f"compute.{field} is {value!r}; it must be one of {choices}")
        if self.unroll < 1:
            raise UserError(f"compute.unroll is {self.unroll}; it must be at least 1")
