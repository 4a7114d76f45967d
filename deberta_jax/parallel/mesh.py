"""The device mesh: how many ways the batch, the parameters and the heads are split."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from deberta_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis: in a slice, and slices. In each group one may be -1: what is left.

    A slice is what a fast network joins: TPUs that share an ICI, the GPUs of a host. Slices are
    joined by the data-center network (DCN). Everything else is one slice.
    """

    # In a slice: copies of the model, each with its own part of the batch.
    data: int = -1
    # Ways that parameters and optimizer state are split, each with its own part of the batch too.
    fsdp: int = 1
    # Ways that heads, the feed-forward layer and the vocabulary are split.
    tensor: int = 1
    # Slices that are copies of one another: only gradients cross the slower network.
    dcn_data: int = -1
    # Slices that parameters and optimizer state are split over.
    dcn_fsdp: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices`, by default all of them; slices come first in an axis.

    Raises:
        UserError: the axes do not multiply to the number of devices of a slice, or of slices.
    """
    slices = _slices(jax.devices() if devices is None else devices)
    sizes = _sizes(config, AXES, len(slices[0]), "device(s)" + " a slice" * (len(slices) > 1))
    across = _sizes(config, ("dcn_data", "dcn_fsdp"), len(slices), "slice(s)")
    types = (AxisType.Auto,) * len(AXES)
    if len(slices) == 1:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=slices[0])
    layout = mesh_utils.create_hybrid_device_mesh(
        sizes, (*across, 1), [device for part in slices for device in part],
        allow_split_physical_axes=True,
    )  # fmt: skip
    return Mesh(layout, AXES, axis_types=types)


def slice_of(device: jax.Device) -> int:
    """Which slice a device belongs to; 0 where the platform knows none."""
    return getattr(device, "slice_index", None) or 0


def _slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    slices = defaultdict(list)
    for device in devices:
        slices[slice_of(device)].append(device)
    if len({len(part) for part in slices.values()}) > 1:
        sizes = ", ".join(str(len(part)) for part in slices.values())
        raise UserError(f"the slices have {sizes} devices; they must all have the same number")
    return [slices[index] for index in sorted(slices)]


def _sizes(config: MeshConfig, axes: Sequence[str], count: int, what: str) -> list[int]:
    """The axes' sizes with -1 filled in."""
    sizes = [getattr(config, axis) for axis in axes]
    named = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(axes, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"{named}: sizes must be at least 1, and at most one of them -1")
    fixed = math.prod(size for size in sizes if size != -1)
    if count % fixed or (-1 not in sizes and fixed != count):
        raise UserError(
            f"{named} does not fit {count} {what}: the sizes must multiply to {count}; -1 fills "
            "one in"
        )
    return [count // fixed if size == -1 else size for size in sizes]
