"""Many runs of one recipe: sweep files, their variants, and running them side by side."""

from deberta_jax.sweeps.grid import integers, log_uniform, product, sample, uniform, zipped

__all__ = ["integers", "log_uniform", "product", "sample", "uniform", "zipped"]
