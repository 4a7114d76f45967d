"""How it is computed fast. Imports nothing of ours."""

from deberta_jax.kernels.attention import IMPLEMENTATIONS, disentangled_attention

__all__ = ["IMPLEMENTATIONS", "disentangled_attention"]
