"""Norms of weights, gradients and updates, layer by layer, computed inside the step.

They are sums over sharded arrays in one compiled program, so that any mesh gives the same numbers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deberta_jax.training.state import TrainState
from deberta_jax.training.step import StepHook, StepOutcome


def norms_hook(every: int) -> StepHook:
    """Adds "norms", {kind: [parts]}: of the weights before the step, the gradient, the update.

    They are measured at every so many steps and at steps that the guard skips; at others they are
    zeros.
    """

    def hook(outcome: StepOutcome) -> tuple[TrainState, dict[str, Any]]:
        trees = {
            "weight": outcome.before.params,
            "gradient": outcome.grads,
            "update": outcome.updates,
        }

        def measure():
            return {kind: part_norms(tree) for kind, tree in trees.items()}

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measure))
        is_due = outcome.skipped | (outcome.after.step % every == 0)
        return outcome.after, {"norms": jax.lax.cond(is_due, measure, lambda: zeros)}

    return hook


def part_names(params: Any) -> list[str]:
    """The parts of a model that `part_norms` measures, in its order.

    A part is a layer, where a parameter's path goes through one ("encoder/last_layer"; those that
    are stacked for a scan are told apart: "encoder/layers/0"), else the parameter's own module
    ("embeddings/word_embeddings").
    """
    names = []
    for part, leaves in _by_part(params).items():
        stacked = range(leaves[0].shape[0]) if _stacked(part) else ()
        names += [f"{part}/{layer}" for layer in stacked] or [part]
    return names


def part_norms(tree: Any) -> Float[Array, " N"]:
    """The Euclidean norm of each part of a tree that is built like the parameters."""
    squares = []
    for part, leaves in _by_part(tree).items():
        kept = int(_stacked(part))  # the scan's axis
        # Over axes rather than reshaped, which would gather what a mesh has split.
        sums = [
            jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=range(kept, leaf.ndim))
            for leaf in leaves
        ]
        squares.append(jnp.atleast_1d(sum(sums)))
    return jnp.sqrt(jnp.concatenate(squares))


def _by_part(tree: Any) -> dict[str, list[Array]]:
    parts: dict[str, list[Array]] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        modules = jax.tree_util.keystr(path, simple=True, separator="/").split("/")[:-1]
        layers = [
            i for i, name in enumerate(modules) if name == "layers" or name.endswith("_layer")
        ]
        part = "/".join(modules[: layers[0] + 1] if layers else modules)
        parts.setdefault(part, []).append(leaf)
    return parts


def _stacked(part: str) -> bool:
    return part.split("/")[-1] == "layers"
