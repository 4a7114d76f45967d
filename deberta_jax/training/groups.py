"""Groups of parameters, each with an optimizer of its own: clip, Adam, schedule, state.

A run has one group unless its objective names several. The state of one group alone is that of its
optax transformation; the states of several are a dict by their names.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from deberta_jax.training.config import OptimizerConfig
from deberta_jax.training.optimizer import check_no_decay, make_optimizer, make_schedule
from deberta_jax.training.step_units import StepUnits
from deberta_jax.training.trainable import Trainable

Tree = Any


class GroupOptimizer(NamedTuple):
    """What updates a group: the gradient transformation, and the learning rate by step."""

    transformation: optax.GradientTransformation
    schedule: optax.Schedule


class Optimizers:
    """The optimizers of a run, by the name of the group of parameters that each updates."""

    def __init__(self, groups: Mapping[str, GroupOptimizer], labels: Tree = None):
        """
        Args:
            groups: by name.
            labels: the name of each parameter's group, a tree like the parameters; None where
                there is one group. A parameter of "a+b" is in both, and each updates it in a stage
                of its own.

        Raises:
            ValueError: a label names no group, or a group has no parameter.
        """
        self.groups = dict(groups)
        self._labels = None
        if len(self.groups) > 1:
            self._labels = _groups_by_path(labels)
            used = set().union(*self._labels.values())
            if used != set(self.groups):
                raise ValueError(
                    f"parameters are labelled {sorted(used)}, but the groups are "
                    f"{sorted(self.groups)}"
                )

    @classmethod
    def single(
        cls, transformation: optax.GradientTransformation, schedule: optax.Schedule
    ) -> "Optimizers":
        """One optimizer for all parameters."""
        return cls({"default": GroupOptimizer(transformation, schedule)})

    def init(self, params: Tree) -> Tree:
        """The state of all optimizers."""
        return self._state(
            {
                name: group.transformation.init(self.select(params, [name]))
                for name, group in self.groups.items()
            }
        )

    def select(self, tree: Tree, names: Sequence[str]) -> Tree:
        """The part of a tree like the parameters that belongs to these groups."""
        if self._labels is None:
            return tree
        return _select(tree, self._labels, names)

    def update(
        self, names: Sequence[str], grads: Tree, state: Tree, params: Tree
    ) -> tuple[Tree, Tree]:
        """(updates, state) of these groups' parameters.

        Args:
            names: the groups.
            grads: of their parameters.
            state: of all groups.
            params: all parameters.
        """
        states = {"": state} if self._labels is None else dict(state)
        updates: Tree = {}
        for name in names:
            key = "" if self._labels is None else name
            own = self.select(grads, [name]), states[key], self.select(params, [name])
            part, states[key] = self.groups[name].transformation.update(*own)
            updates = merge(updates, part)
        return updates, self._state(states)

    def metrics(self, names: Sequence[str], grads: Tree, count: jax.Array) -> dict[str, jax.Array]:
        """Norm of the gradient and learning rate of each of these groups, after `count` updates."""
        measured = {}
        for name in names:
            measured[self.norm_metric(name)] = optax.tree.norm(self.select(grads, [name]))
            rate = self._metric(name, "learning_rate")
            measured[rate] = self.groups[name].schedule(count)
        return measured

    def norm_metric(self, name: str) -> str:
        """The metric that is the norm of a group's gradient."""
        return self._metric(name, "grad_norm")

    def _metric(self, name: str, what: str) -> str:
        return f"optim/{what}" if self._labels is None else f"optim/{name}/{what}"

    def _state(self, states: dict[str, Tree]) -> Tree:
        return states if self._labels is not None else next(iter(states.values()))


def merge(tree: Tree, part: Tree) -> Tree:
    """The tree with the leaves of `part`, which is built like some of it, in their places."""
    return unflatten_dict(flatten_dict(tree) | flatten_dict(part))


def make_optimizers(config: OptimizerConfig, objective: Trainable, units: StepUnits) -> Optimizers:
    """One optimizer for each of the objective's groups.

    Raises:
        UserError: a setting that no optimizer has, or one that fits neither the run nor the model.
    """
    shapes = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))
    check_no_decay(config, shapes)
    depths = objective.depths(shapes) if config.layer_decay != 1 else None
    labels = objective.parameter_groups(shapes)
    groups = {}
    for name in objective.groups:
        own = objective.optimizer_config(name, config)
        schedule = make_schedule(own, units)
        own_depths = depths
        if depths is not None and len(objective.groups) > 1:
            own_depths = _select(depths, _groups_by_path(labels), [name])
        groups[name] = GroupOptimizer(make_optimizer(own, schedule, own_depths), schedule)
    return Optimizers(groups, labels)


def _groups_by_path(labels: Tree) -> dict[tuple, set[str]]:
    """The groups of each parameter, by its path."""
    return {path: set(label.split("+")) for path, label in flatten_dict(labels).items()}


def _select(tree: Tree, groups: dict[tuple, set[str]], names: Sequence[str]) -> Tree:
    """The part of a tree that belongs to the named ones of `groups`."""
    flat = flatten_dict(tree)
    return unflatten_dict({path: x for path, x in flat.items() if groups[path] & set(names)})
