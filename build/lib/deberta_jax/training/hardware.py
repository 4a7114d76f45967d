"""Peak speed of the devices, against which a run's MFU is stated."""

import time

import jax
import jax.numpy as jnp

from deberta_jax.parallel.chips import chip_of

# bf16 peak of a GPU in TFLOP/s, as its maker states it (the device kinds that JAX reports).
GPU_TFLOPS = {
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H200": 989,
}


def peak_flops(device: jax.Device) -> tuple[float | None, str]:
    """(FLOP/s of one device, where the figure is from); a CPU's is a measured matmul."""
    if device.platform == "cpu":
        # Virtual devices share one processor: each has its share of what is measured.
        return _matmul_flops() / jax.local_device_count(), "a measured float32 matmul"
    source = "the maker's bf16 peak"
    if chip := chip_of(device.device_kind):
        return chip.peak_flops, source
    peak = GPU_TFLOPS.get(device.device_kind)
    return (peak and peak * 1e12), source


def _matmul_flops(size: int = 1024, tries: int = 5) -> float:
    operand = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(lambda x: x @ x)
    multiply(operand).block_until_ready()
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        multiply(operand).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
