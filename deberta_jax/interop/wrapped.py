"""An encoder inside another module: its tensors under the names that they have without it."""

from collections.abc import Mapping

import numpy as np
from absl import logging

from deberta_jax.errors import UserError

# What torch.compile, DistributedDataParallel and FSDP put into names.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_WORD_TABLE = "embeddings.word_embeddings.weight"
# How transformers and older code call the encoder beside its head.
_ENCODERS = ("deberta.", "bert.")
_PAIR = {"generator.", "discriminator."}


def unwrapped(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of the one encoder, and of the heads beside it, without what is before them.

    Of a model that has the encoder as one of its parts, such as GLiNER or a class of one's own, the
    other parts are left out, with one line in the log. Both models of replaced token detection
    keep their names.

    Raises:
        UserError: there are several encoders.
    """
    plain = {_without_wrappers(name): x for name, x in tensors.items()}
    outer = {_outer(name) for name in plain if f".{name}".endswith(f".{_WORD_TABLE}")}
    if not outer or outer & {"", *_PAIR}:
        return plain
    if len(outer) > 1:
        raise UserError(
            f"there are {len(outer)} encoders, under {', '.join(sorted(outer))}; save the one that "
            "is wanted by itself"
        )
    (prefix,) = outer
    others = sorted({name.split(".")[0] for name in plain if not name.startswith(prefix)})
    if others:
        logging.warning("left out, around the encoder %s*: %s", prefix, ", ".join(others))
    return {name.removeprefix(prefix): x for name, x in plain.items() if name.startswith(prefix)}


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _outer(word_table: str) -> str:
    """What stands before the encoder's own names; "" where nothing does."""
    prefix = word_table.removesuffix(_WORD_TABLE)
    for encoder in _ENCODERS:
        if f".{prefix}".endswith(f".{encoder}"):
            return prefix.removesuffix(encoder)
    return prefix
