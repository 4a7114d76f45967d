"""What a program is being traced for."""

import jax


def kind() -> str:
    """As JAX names the device: "cpu", "TPU v5 lite", "NVIDIA H100 80GB HBM3".

    The device of the mesh in force, which need not be one of this machine's: programs are compiled
    ahead for machines that are not there.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return jax.devices()[0].device_kind if device is None else device.device_kind


def platform() -> str:
    """ "tpu", or what JAX runs on here."""
    return "tpu" if kind().startswith("TPU") else jax.default_backend()


def turns_by_row() -> bool:
    """Whether a TPU rotates every row of a register by another amount, and gathers along columns:
    all but the oldest that are still about."""
    return kind() not in ("TPU v2", "TPU v3", "TPU v4", "TPU v4 lite")
