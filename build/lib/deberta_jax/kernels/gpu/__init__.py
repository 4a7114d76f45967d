"""Fused disentangled attention for GPUs, in Pallas (Triton)."""

from deberta_jax.kernels.gpu.implementation import HEAD_SIZES, IMPLEMENTATION, attention

__all__ = ["HEAD_SIZES", "IMPLEMENTATION", "attention"]
