"""Disentangled attention fused into one TPU kernel a pass, with memory linear in the length."""

from deberta_jax.kernels.tpu.attention import attention, check

__all__ = ["attention", "check"]
