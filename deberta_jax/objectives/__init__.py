"""What is learned. An objective is the only thing that knows what a batch means.

Objectives are known by name. A package of your own adds one with an entry point of the group
`deberta_jax.objectives` (docs/extending.md); nothing here changes.
"""

import functools
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import numpy as np

from deberta_jax.errors import UserError
from deberta_jax.objectives.base import Objective

GROUP = "deberta_jax.objectives"
# Imported when asked for: one objective does not pay for the others.
_BUILT_IN = {
    "mlm": "mlm:MaskedLanguageModelling",
    "clm": "clm:CausalLanguageModelling",
    "mlm_clm": "mlm_clm:MaskedAndCausalLanguageModelling",
    "rtd": "rtd:ReplacedTokenDetection",
    "classification": "finetuning:FineTuning",
    "multi_label": "finetuning:FineTuning",
    "regression": "finetuning:FineTuning",
    "multiple_choice": "finetuning:FineTuning",
    "span": "finetuning:FineTuning",
    "token_classification": "finetuning:FineTuning",
}

__all__ = ["GROUP", "Objective", "kind", "make", "names"]


def names() -> list[str]:
    """The objectives that there are: those of this package, then those of installed ones."""
    return [*_BUILT_IN, *sorted(_installed().keys() - _BUILT_IN.keys())]


def kind(name: str) -> type[Objective]:
    """The class of an objective.

    Raises:
        UserError: there is none of that name, or its package cannot be imported.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    if name not in _installed():
        known = ", ".join(map(repr, names()))
        raise UserError(f"objective is {name!r}; it must be one of {known}")
    try:
        loaded = _installed()[name].load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"objective {name!r} cannot be imported: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Objective)):
        raise UserError(f"objective {name!r} is no subclass of deberta_jax.objectives.Objective")
    return loaded


def make(config: Any, unigram_counts: np.ndarray | None = None) -> Objective:
    """The objective that `config.objective` names.

    Args:
        config: a `deberta_jax.schema.Config`.
        unigram_counts: int64 [V], how often each ordinary token occurs in the training text; for
            objectives that learn from text.
    """
    return kind(config.objective).from_config(config, unigram_counts)


@functools.cache
def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
