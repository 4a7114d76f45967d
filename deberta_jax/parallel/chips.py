"""TPU chips as their maker states them, and the topologies that they come in."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from deberta_jax.errors import UserError

GIB = 2**30
_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device of a generation; a chip of tpu7x is two.

    Attributes:
        name: the generation, as topology names begin.
        device_kinds: what JAX calls the device.
        topologies: shapes of a slice, in chips.
        host: the smallest whole host, for programs of one device.
        peak_flops: bf16 FLOP/s.
        clock: cycles a second of the tensor core: what the peak and the number of multipliers in
            its matrix units imply.
        hbm_bandwidth: bytes a second.
        hbm_bytes: memory that the compiler gives a program; the rest is the system's.
        link_bandwidth: bytes a second of one ICI link, one way.
        wraps: a torus axis of a multiple of this length is a ring; others are lines.
        dcn_bandwidth: bytes a second to other slices.
        compiler_options: options of a topology with which the compiler sees the devices that a
            run has. (Of v4 it would otherwise take each core of a chip for a device.)
    """

    name: str
    device_kinds: tuple[str, ...]
    topologies: tuple[str, ...]
    host: str
    peak_flops: float
    clock: float
    hbm_bandwidth: float
    hbm_bytes: int
    link_bandwidth: float
    wraps: int
    dcn_bandwidth: float
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Peak, HBM and ICI (bidirectional, over 4 links in squares and 6 in cubes): docs.cloud.google.com/
# tpu/docs/ v4, v5e, v5p, v6e, tpu7x. DCN: the same, by pod or by chip; v4's, which is not there,
# and the wrap-around rule: jax-ml.github.io/scaling-book/tpus. HBM: what the compiler says is
# available. Everything is of one device: half a chip's on tpu7x.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", ("TPU v4",), _CUBES, "v4:2x2x1", 275e12, 1.05e9, 1228e9, int(30.75 * GIB), 50e9,
             4, 6.25e9, {"chip_config_name": "megacore"}),
        Chip("v5e", ("TPU v5 lite", "TPU v5e"), _SQUARES, "v5e:2x2", 197e12, 1.5e9, 819e9,
             int(15.75 * GIB), 50e9, 16, 6.4e12 / 8 / 256),
        Chip("v5p", ("TPU v5", "TPU v5p"), (*_CUBES, "16x16x16", "16x16x24"), "v5p:2x2x1", 459e12,
             1.75e9, 2765e9, int(95.74 * GIB), 100e9, 4, 50e9 / 8),
        Chip("v6e", ("TPU v6 lite", "TPU v6e"), _SQUARES, "v6e:2x2", 918e12, 1.75e9, 1640e9,
             int(31.25 * GIB), 100e9, 16, 100e9 / 8),
        Chip("tpu7x", ("TPU7x", "TPU v7x"), _CUBES, "tpu7x:2x2x1", 2307e12 / 2, 2.2e9, 7380e9 / 2,
             int(94.75 * GIB), 100e9 / 2, 4, 100e9 / 8 / 2),
    )
}  # fmt: skip


def chip_named(name: str) -> Chip:
    """Raises `UserError` for a chip that is not in `CHIPS`; "v5e:16x16" means v5e."""
    generation = name.split(":")[0]
    if generation not in CHIPS:
        raise UserError(f"chip {name!r} is not known; it must be one of {', '.join(CHIPS)}")
    return CHIPS[generation]


def check_topology(name: str) -> Chip:
    """The chip of a topology such as "v5e:16x16".

    Raises:
        UserError: there is none of that name, listing those that there are.
    """
    generation, _, shape = name.partition(":")
    chip = CHIPS.get(generation)
    if chip and shape in chip.topologies:
        return chip
    known = [f"{one.name}:{shape}" for one in ([chip] if chip else CHIPS.values())
             for shape in one.topologies]  # fmt: skip
    raise UserError(f"topology {name!r} is not known; it must be one of {', '.join(known)}")


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, if it is a TPU known here."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)
