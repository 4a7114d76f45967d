"""A masked LM that goes on from a checkpoint, with new parts where that has none."""

from collections.abc import Sequence
from typing import NamedTuple

from deberta_jax.errors import UserError
from deberta_jax.interop.names import NEW_PARTS
from deberta_jax.interop.pretrained import from_state_dict, shapes
from deberta_jax.interop.released import Released
from deberta_jax.model.heads import Deberta


class Continued(NamedTuple):
    """Parameters to go on from.

    Attributes:
        params: of the model, float32.
        new: the names of its parts that are not the checkpoint's.
    """

    params: dict
    new: tuple[str, ...]


def continued(
    model: Deberta, checkpoint: Released, new_parts: Sequence[str] = (), seed: int = 0
) -> Continued:
    """The parameters of `model` from a checkpoint of its architecture.

    A part that the checkpoint lacks as a whole is initialised: a fine-tuned classifier or a bare
    encoder has no masked-LM head, and other programs keep no table for the mask decoder.

    Args:
        model: a masked LM.
        checkpoint: an encoder, with or without heads.
        new_parts: names of parts that are initialised although the checkpoint has them.
        seed: of what is initialised.

    Raises:
        UserError: there is no such part; tensors are missing, extra or misshapen; or the
            checkpoint's head is not its body's.
    """
    tensors, new = dict(checkpoint.tensors), []
    known = [part for part in NEW_PARTS if _can_be_new(model, part)]
    for part in new_parts:
        if part not in known:
            raise UserError(f"train.new_parts has {part!r}; this model's are {', '.join(known)}")
    for part in known:
        if part in new_parts:
            tensors = {k: x for k, x in tensors.items() if not k.startswith(NEW_PARTS[part])}
        if not _names(tensors, part):
            new.append(part)
    prefixes = [NEW_PARTS[part] for part in new]
    return Continued(from_state_dict(model, tensors, new=prefixes, seed=seed), tuple(new))


def _can_be_new(model: Deberta, part: str) -> bool:
    """Whether the model has the part, and is the same without what was learned in it.

    Absolute positions in the input are no part of their own: every layer was trained on them.
    """
    if part == "position_embeddings" and not model.config.decodes_with_emd:
        return False
    return bool(_names(shapes(model), part))


def _names(tensors, part: str) -> list[str]:
    return [name for name in tensors if name.startswith(NEW_PARTS[part])]
