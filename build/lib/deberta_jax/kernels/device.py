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


# The oldest that are still about.
_OLD = ("TPU v2", "TPU v3", "TPU v4", "TPU v4 lite")
_MIB = 2**20
# What a TPU core has of VMEM where it is not 128 MiB (jax.experimental.pallas.tpu.get_tpu_info).
_VMEM = dict.fromkeys(_OLD, 16 * _MIB) | dict.fromkeys(
    ("TPU v5", "TPU v5p", "TPU7x", "TPU v7x"), 64 * _MIB
)


def turns_by_row() -> bool:
    """Whether a TPU rotates every row of a register by another amount, and gathers along columns:
    all but the oldest."""
    return kind() not in _OLD


def vmem_bytes() -> int:
    """What a kernel may take of a TPU core's own memory."""
    return _VMEM.get(kind(), 128 * _MIB)
