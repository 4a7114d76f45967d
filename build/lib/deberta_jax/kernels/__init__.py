"""How it is computed fast. Imports nothing of ours."""

from deberta_jax.kernels.attention import (
    IMPLEMENTATIONS,
    default_implementation,
    disentangled_attention,
)
from deberta_jax.kernels.protocol import AttentionCall, Implementation, UnsupportedCall

__all__ = [
    "IMPLEMENTATIONS",
    "AttentionCall",
    "Implementation",
    "UnsupportedCall",
    "default_implementation",
    "disentangled_attention",
]
