"""AdamW by optax: named schedules, a decay mask, a global clip."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from deberta_jax.errors import UserError
from deberta_jax.training.config import OptimizerConfig
from deberta_jax.training.step_units import StepUnits


def make_schedule(config: OptimizerConfig, units: StepUnits) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then the named schedule to the end of the run.

    Raises:
        UserError: an unknown schedule, or a warm-up (and decay) longer than the run.
    """
    total = units.total_steps
    warmup = units.steps("optimizer.warmup", config.warmup)
    cooldown = units.steps("optimizer.decay", config.decay)
    peak, final = config.learning_rate, config.learning_rate * config.final_share
    own_decay = config.schedule in ("rsqrt", "wsd")
    if warmup + (cooldown if own_decay else 0) > total:
        raise UserError(
            f"optimizer.warmup {config.warmup!r}"
            + (f" and optimizer.decay {config.decay!r}" if own_decay else "")
            + f" are longer than train.duration ({total} steps)"
        )
    ends: list[int]
    rise = optax.linear_schedule(0.0, peak, max(1, warmup))
    if config.schedule == "linear":
        parts, ends = [optax.linear_schedule(peak, final, max(1, total - warmup))], []
    elif config.schedule == "cosine":
        fall = optax.cosine_decay_schedule(peak, max(1, total - warmup), config.final_share)
        parts, ends = [fall], []
    elif config.schedule == "wsd":
        fall = optax.linear_schedule(peak, final, max(1, cooldown))
        parts, ends = [optax.constant_schedule(peak), fall], [total - cooldown]
    elif config.schedule == "rsqrt":
        scale = max(1, warmup)

        def slope(step):  # counts from the end of the warm-up
            return peak * (scale / (scale + jax.numpy.maximum(step, 0))) ** 0.5

        start = float(slope(total - cooldown - warmup))
        fall = optax.linear_schedule(start, final, max(1, cooldown))
        parts, ends = [slope, fall], [total - cooldown]
    else:
        raise UserError(
            f"optimizer.schedule is {config.schedule!r}; it must be one of "
            "'linear', 'cosine', 'rsqrt', 'wsd'"
        )
    if warmup == 0:  # the first step already takes the peak
        return optax.join_schedules(parts, ends)
    return optax.join_schedules([rise, *parts], [warmup, *ends])


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, depths: Any = None
) -> optax.GradientTransformation:
    """The gradient transformation: clip, Adam, decoupled decay, learning rate.

    Args:
        config: its settings.
        schedule: learning rate by step.
        depths: how deep each parameter lies, a tree like theirs (`layer_decay` goes by it); the
            deepest have the schedule's own learning rate.
    """
    adam = (
        optax.scale_by_adam(config.b1, config.b2, config.eps)
        if config.bias_correction
        else _scale_by_uncorrected_adam(config)
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        adam,
        optax.add_decayed_weights(
            config.weight_decay, functools.partial(decay_mask, no_decay=config.no_decay)
        ),
        optax.scale_by_learning_rate(schedule),
        optax.identity() if depths is None else _slower_below(config.layer_decay, depths),
    )


def _slower_below(decay: float, depths: Any) -> optax.GradientTransformation:
    """Multiplies the update of a parameter by `decay` for every layer that lies above it."""
    if not 0 < decay <= 1:
        raise UserError(f"optimizer.layer_decay is {decay}; it must be above 0 and at most 1")
    deepest = max(int(np.max(depth)) for depth in jax.tree.leaves(depths))
    shares = jax.tree.map(lambda depth: np.float32(decay ** (deepest - depth)), depths)
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, shares))


def decay_mask(parameters: Any, no_decay: Sequence[str] = ()) -> Any:
    """True where weight decay applies: everything but biases, LayerNorm scales, and `no_decay`."""

    def decays(path, _):
        names = _names(path)
        return not (
            names[-1].endswith("bias") or names[-1] == "scale" or set(names) & set(no_decay)
        )

    return jax.tree.map_with_path(decays, parameters)


def check_no_decay(config: OptimizerConfig, parameters: Any) -> None:
    """Raises `UserError` where `optimizer.no_decay` names what the model does not have."""
    paths = [_names(path) for path, _ in jax.tree.leaves_with_path(parameters)]
    known = {name for names in paths for name in names}
    for name in config.no_decay:
        if name not in known:
            raise UserError(
                f"optimizer.no_decay has {name!r}, which is no module or parameter of this model; "
                f"it has {', '.join(sorted(known))}"
            )


def _names(path: tuple[Any, ...]) -> list[str]:
    """The modules of a parameter and its own name; a box's own field is none of them."""
    return [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]


def _scale_by_uncorrected_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam without the 1 - b^t corrections: mu / (sqrt(nu) + eps), as in the released code."""

    def init(parameters):
        zeros = optax.tree.zeros_like(parameters)
        return optax.ScaleByAdamState(jax.numpy.zeros([], "int32"), zeros, zeros)

    def update(updates, state, parameters=None):
        del parameters
        mu = optax.tree.update_moment(updates, state.mu, config.b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, config.b2, 2)
        scaled = jax.tree.map(lambda m, v: m / (v**0.5 + config.eps), mu, nu)
        return scaled, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)
