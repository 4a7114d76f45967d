"""From logical axes to the axes of a mesh, for arrays whose sizes are known."""

import math
from collections.abc import Iterable, Sequence

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh

# Mesh axes that may split a logical axis.
MeshAxes = str | tuple[str, ...] | None


def splitting_axes(
    logical: Sequence[str | None],
    shape: Sequence[int],
    rules: Iterable[tuple[str, MeshAxes]] | None = None,
    mesh: Mesh | AbstractMesh | None = None,
) -> tuple[tuple[str, ...], ...]:
    """For each dimension of an array, the mesh axes that split it; () where none does.

    Of the rules for a logical axis the first one counts whose mesh axes divide the dimension and
    split no other one of this array. Mesh axes of size 1 split nothing.

    Args:
        logical: the logical axis of each dimension; None for one that nothing splits.
        shape: its sizes.
        rules: (logical axis, mesh axis or axes or None) in order of preference; by default those
            of `nn.logical_axis_rules`.
        mesh: by default the one in force (`jax.set_mesh`). Without one nothing is split.
    """
    rules = nn.get_logical_axis_rules() if rules is None else rules
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if mesh.empty:
        return ((),) * len(shape)
    splitting: list[tuple[str, ...]] = []
    used: set[str] = set()
    for name, size in zip(logical, shape, strict=True):
        chosen: tuple[str, ...] = ()
        for axes in (_axes(to, mesh) for rule, to in rules if rule == name is not None):
            ways = math.prod(mesh.shape[axis] for axis in axes)
            if axes and not used & set(axes) and size % ways == 0:
                chosen = axes
                break
        used |= set(chosen)
        splitting.append(chosen)
    return tuple(splitting)


def _axes(to: MeshAxes, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    axes = (to,) if isinstance(to, str) else tuple(to or ())
    return tuple(axis for axis in axes if mesh.shape[axis] > 1)
