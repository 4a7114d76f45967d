"""Fused disentangled attention for CPUs in float32: C++ that is compiled once for each machine."""

from deberta_jax.kernels.cpu.attention import attention, check

__all__ = ["attention", "check"]
