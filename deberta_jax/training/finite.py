"""Whether arrays are finite: asked before a state is used, saved or written as a checkpoint."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from deberta_jax.parallel import sharding


def not_finite(tree: Any) -> list[str]:
    """The paths of the arrays that hold a NaN or an infinity.

    The arrays are read once, on their devices and in shards. All processes call it together.
    """
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if not leaves:
        return []
    layout = getattr(leaves[0][1], "sharding", None)
    mesh = layout.mesh if isinstance(layout, NamedSharding) else None
    finite = np.asarray(_on(mesh)([leaf for _, leaf in leaves]))
    return [name for (name, _), is_finite in zip(leaves, finite, strict=True) if not is_finite]


@functools.cache
def _on(mesh: jax.sharding.Mesh | None) -> Callable:
    """`leaves -> bool [N]`, whole on every process of a mesh."""

    def finite(leaves):
        return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])

    return jax.jit(finite, out_shardings=None if mesh is None else sharding.replicated(mesh))
