"""Whether arrays are finite: asked before a state is used, saved or written as a checkpoint."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from deberta_jax.errors import UserError, listed
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


def check_finite(state: Any, source: str) -> None:
    """Raises `UserError` where an array of the state holds a NaN or an infinity.

    Args:
        state: any tree of arrays.
        source: where it comes from, for the message.
    """
    if names := not_finite(state):
        raise UserError(f"{source} holds values that are not finite, in {listed(names, 'arrays')}")


@functools.cache
def _on(mesh: jax.sharding.Mesh | None) -> Callable:
    """`leaves -> bool [N]`, whole on every process of a mesh."""

    def finite(leaves):
        return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])

    return jax.jit(finite, out_shardings=None if mesh is None else sharding.replicated(mesh))
