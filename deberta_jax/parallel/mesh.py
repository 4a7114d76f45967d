"""The device mesh: how many ways the batch, the parameters and the heads are split."""

import dataclasses
import math

import jax
from jax.sharding import AxisType, Mesh

from deberta_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one of them may be -1 and takes what is left."""

    # Copies of the model, each with its own part of the batch.
    data: int = -1
    # Ways that parameters and optimizer state are split, each with its own part of the batch too.
    fsdp: int = 1
    # Ways that heads, the feed-forward layer and the vocabulary are split.
    tensor: int = 1


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
    """The mesh over `devices` (all of them unless told otherwise).

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    named = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"{named}: sizes must be at least 1, and at most one of them -1")
    fixed = math.prod(size for size in sizes if size != -1)
    if len(devices) % fixed or (-1 not in sizes and fixed != len(devices)):
        raise UserError(
            f"{named} does not fit {len(devices)} device(s): the sizes must multiply to "
            f"{len(devices)}; -1 fills one in"
        )
    sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
