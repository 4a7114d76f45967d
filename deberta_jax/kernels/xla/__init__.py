"""Disentangled attention in plain XLA: the fallback on every platform."""

from deberta_jax.kernels.xla.attention import attention

__all__ = ["attention"]
