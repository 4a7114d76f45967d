"""Disentangled attention in plain XLA: the fallback on every platform."""

from deberta_jax.kernels.xla.implementation import IMPLEMENTATION, attention

__all__ = ["IMPLEMENTATION", "attention"]
