"""Fused disentangled attention for CPUs in float32: C++ that is compiled once for each machine."""

from deberta_jax.kernels.cpu.implementation import IMPLEMENTATION, attention

__all__ = ["IMPLEMENTATION", "attention"]
