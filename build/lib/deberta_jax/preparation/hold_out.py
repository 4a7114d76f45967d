"""Which documents are held out for validation."""

import dataclasses
import hashlib

import numpy as np

from deberta_jax.errors import UserError


@dataclasses.dataclass
class HoldOut:
    """Holds out documents by a hash of their names, at least one and never all.

    Add every name once, call `resolve`, then ask `validates`. Memory does not grow with
    the number of documents.
    """

    seed: int
    share: float

    def __post_init__(self):
        self._threshold = self.share
        self._lowest, self._highest = 1.0, 0.0
        self._seen = self._held_out = 0

    def _hash(self, name: str) -> float:
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=6).digest()
        return int.from_bytes(digest, "big") / 2**48

    def add(self, name: str) -> None:
        value = self._hash(name)
        self._lowest, self._highest = min(self._lowest, value), max(self._highest, value)
        self._seen += 1
        self._held_out += value < self.share

    def resolve(self, corpus: str) -> None:
        """Fixes the choice. Raises UserError if there is but one document in `corpus`."""
        if self._seen < 2:
            raise UserError(
                f"corpus {corpus!r} is a single document, so none can be held out; "
                "set data.validation_corpus"
            )
        if self._held_out == 0:
            self._threshold = float(np.nextafter(self._lowest, 1.0))
        elif self._held_out == self._seen:
            self._threshold = self._highest

    def validates(self, name: str) -> bool:
        return self._hash(name) < self._threshold
