"""Disentangled attention fused into one TPU kernel a pass, with memory linear in the length."""

from deberta_jax.kernels.tpu.implementation import IMPLEMENTATION, attention

__all__ = ["IMPLEMENTATION", "attention"]
