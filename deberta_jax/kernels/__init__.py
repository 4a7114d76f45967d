"""How it is computed fast. Imports nothing of ours."""

from deberta_jax.kernels.attention import disentangled_attention

__all__ = ["disentangled_attention"]
