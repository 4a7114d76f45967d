"""What a run is, beside its config: its id, and digests of what it learns from.

`identity.json` in the workdir holds them from the first start on. Whatever goes on in that workdir
is compared with it, before anything is written.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deberta_jax import storage
from deberta_jax.data.dataset import PreparedData
from deberta_jax.data.tasks.encoded import Encoded
from deberta_jax.errors import UserError
from deberta_jax.training.identity import FILE, RUN, new_id, read

_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")

# Digests, counts or settings by what they are of.
Identity = Mapping[str, Any]


def of_data(prepared: PreparedData) -> dict[str, Any]:
    """The identity of prepared data: wherever it lies, the same text in the same sequences."""
    metadata = prepared.metadata
    elsewhere = ("corpus", "validation_corpus", "tokenizer")  # paths; their content is compared
    shaping = {k: v for k, v in metadata.settings.items() if k not in elsewhere}
    sequences = {split: counts.tokens for split, counts in sorted(metadata.splits.items())}
    identity = {
        "the tokenizer": metadata.tokenizer_sha256,
        "the settings of the data": digest(shaping),
        "the tokens of the data": ", ".join(f"{n:,} {split}" for split, n in sequences.items()),
    }
    texts = {name: text["sha256"] for name, text in metadata.texts.items()}
    return identity | {f"the text of data.{name}": value for name, value in texts.items()}


def of_examples(
    tensors: Mapping[str, np.ndarray], pieces: Sequence[str], sets: Iterable[tuple[str, Encoded]]
) -> dict[str, Any]:
    """The identity of what a task is learned from: the checkpoint, and each set of examples.

    Args:
        tensors: the checkpoint's weights.
        pieces: the texts of its tokenizer's ids.
        sets: (name, examples) as the model reads them, labels among them.
    """
    identity = {"the weights": digest(tensors), "the tokenizer": digest(pieces)}
    for name, given in sets:
        content = digest([given.items, given.examples])
        identity[f"the {name} examples"] = f"{len(given.examples):,}, {content}"
    return identity


def digest(value: Any) -> str:
    """SHA-256 of what JSON can hold, of arrays, and of dicts and sequences of them."""
    hashed = hashlib.sha256()
    _add(hashed, value)
    return hashed.hexdigest()


def _add(hashed, value: Any) -> None:
    if isinstance(value, Mapping):
        hashed.update(f"{{{len(value)}".encode())
        for name in sorted(value):
            hashed.update(json.dumps(name).encode())
            _add(hashed, value[name])
    elif isinstance(value, (list, tuple)):
        hashed.update(f"[{len(value)}".encode())
        for item in value:
            _add(hashed, item)
    elif isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        hashed.update(f"{array.dtype.name}{array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    else:
        hashed.update(json.dumps(value, ensure_ascii=True).encode())


def differences(known: Identity, present: Identity) -> list[str]:
    """One text for each name that both have, with other values. What only one has says nothing."""
    return [
        f"{name}: {_short(known[name])} then, {_short(present[name])} now"
        for name in known
        if name in present and known[name] != present[name]
    ]


def check(workdir: Path, present: Identity, advice: str) -> None:
    """Raises `UserError` where the workdir's run was started with something else.

    Args:
        workdir: of the run.
        present: what it would go on with.
        advice: what the user may do about it.
    """
    if differing := differences(read(workdir), present):
        raise UserError(
            f"{workdir} was started with something else ({'; '.join(differing)}); {advice}"
        )


def keep(workdir: Path, present: Identity, anew: bool = False) -> None:
    """Writes what of `present` the workdir's identity lacks; with an id where it has none.

    With `anew` it replaces what is there, of a start that came to no checkpoint.
    """
    if jax.process_index() != 0:
        return
    known = read(workdir)
    kept = {} if anew else known
    whole = {RUN: known.get(RUN, new_id())} | dict(present) | kept
    if whole != known:
        storage.write_json(workdir / FILE, whole)


def _short(value: Any) -> str:
    """A value with its digests cut to what a person compares."""
    return _DIGEST.sub(lambda match: match[0][:8], str(value))
