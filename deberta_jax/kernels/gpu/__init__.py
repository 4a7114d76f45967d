"""Fused disentangled attention for GPUs, in Pallas (Triton)."""

from deberta_jax.kernels.gpu.attention import HEAD_SIZES, attention, check

__all__ = ["HEAD_SIZES", "attention", "check"]
