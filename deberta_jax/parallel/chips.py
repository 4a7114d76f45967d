"""TPU chips as their maker states them, and compile-only devices for any number of them."""

import dataclasses

from deberta_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device of a generation.

    Attributes:
        name: the generation, as topology names begin.
        host: topology of the smallest host, for programs of one device.
        peak_flops: bf16 FLOP/s.
        clock: cycles a second of the tensor core: what the peak and the number of multipliers in
            its matrix units imply.
        hbm_bandwidth: bytes a second.
        hbm_bytes: memory of the device.
    """

    name: str
    host: str
    peak_flops: float
    clock: float
    hbm_bandwidth: float
    hbm_bytes: int


# cloud.google.com/tpu/docs/system-architecture-tpu-vm. A v4 chip is two devices to the compiler
# unless its cores are joined; the figures are those of one.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "v4:2x2x1", 275e12 / 2, 1.05e9, 1228e9 / 2, 32 * 2**30 // 2),
        Chip("v5e", "v5e:2x2", 197e12, 1.5e9, 819e9, 16 * 2**30),
        Chip("v5p", "v5p:2x2x1", 459e12, 1.75e9, 2765e9, 95 * 2**30),
        Chip("v6e", "v6e:2x2", 918e12, 1.75e9, 1640e9, 32 * 2**30),
    )
}


def chip_named(name: str) -> Chip:
    """Raises `UserError` for a chip that is not in `CHIPS`; "v5e:16x16" means v5e."""
    generation = name.split(":")[0]
    if generation not in CHIPS:
        raise UserError(f"chip {name!r} is not known; it must be one of {', '.join(CHIPS)}")
    return CHIPS[generation]
