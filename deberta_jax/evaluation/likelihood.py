"""Log-likelihoods of sentences: exact where the model is causal, pseudo where it is masked.

Pseudo-log-likelihood: the sum over a sentence's tokens of ln p(token | all others), each from a
copy with that token masked (Salazar et al., arXiv 1910.14659). A word's later tokens give its
earlier ones away: "pll-word-l2r" masks those too (Kauf and Ivanova, arXiv 2305.10588). Words are
those that masking has (`data.words`): a sentence without blanks is not one word.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deberta_jax.data.words import word_starts
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.model.losses import next_tokens, token_losses
from deberta_jax.parallel import sharding

METHODS = ("pll", "pll-word-l2r", "ll")
# Copies are padded to multiples of the first up to 64 tokens, of the second beyond.
_FINE, _COARSE = 8, 64
_SECONDS_BETWEEN_LINES = 5.0


class Marks(NamedTuple):
    """What pseudo-log-likelihoods need to know of a vocabulary.

    Attributes:
        mask_id: the id of [MASK].
        word_start_V: bool [V], the tokens that begin a word.
        unspaced_V: bool [V], the tokens of a script that has no blanks between words; None: none.
    """

    mask_id: int
    word_start_V: np.ndarray
    unspaced_V: np.ndarray | None = None


def log_likelihoods(
    model: DebertaForMaskedLM,
    params,
    sentences: Sequence[np.ndarray],
    method: str,
    marks: Marks,
    mesh: Mesh,
    batch_tokens: int = 16_384,
    log: Callable[[str], None] = lambda line: None,
) -> np.ndarray:
    """The log-likelihood in nats of each sentence, float64 [N]; [CLS] and [SEP] are given.

    Copies are batched with others of about their length, and each is decoded at its one masked
    position only: with EMD that is exact. The logits are never all in memory.

    Args:
        model: masked for "pll" and "pll-word-l2r", causal for "ll".
        params: its parameters.
        sentences: int32 ids of each, [CLS] and [SEP] at its ends.
        method: one of METHODS.
        marks: of the vocabulary; "ll" needs none.
        mesh: the devices that batches are divided over.
        batch_tokens: tokens computed at once, padding included.
        log: takes lines of progress.
    """
    losses = _compiled(model, mesh)
    params = jax.device_put(params, sharding.replicated(mesh))
    # One sentence a copy, or one token.
    lengths = np.array([len(ids) for ids in sentences])
    copies = np.ones_like(lengths) if method == "ll" else lengths - 2
    owner = np.repeat(np.arange(len(sentences)), copies)
    position = np.arange(len(owner)) - np.repeat(np.cumsum(copies) - copies, copies) + 1
    scores, done, computing = np.zeros(len(sentences)), 0, None
    start = last = time.monotonic()
    with sharding.on(mesh):
        for chosen, width, rows in batches(lengths[owner], batch_tokens, mesh.size):
            batch = padded([sentences[index] for index in owner[chosen]], width, rows)
            if method != "ll":
                _mask(batch, position[chosen], method, marks)
            loss_B = losses(params, sharding.to_devices(batch, mesh))
            # The batch before is fetched only now that the devices are busy with this one.
            _subtract(scores, computing)
            computing = owner[chosen], loss_B
            done += len(chosen)
            if (now := time.monotonic()) - last >= _SECONDS_BETWEEN_LINES:
                last, left = now, (now - start) * (len(owner) - done) / done
                log(f"{done:,} of {len(owner):,} copies scored, about {left:.0f} s left")
    _subtract(scores, computing)
    return scores


@functools.cache
def _compiled(model, mesh):
    """`(params, batch) -> losses`, compiled once for each width of batches."""

    def losses(params, batch):
        """float32 [B]: minus the log-likelihood of what is predicted of each copy."""
        if "masked_positions" in batch:
            weights_BP: Any = 1.0
            labels_BP = batch["masked_labels"]
        else:
            labels_BP, weights_BP = next_tokens(batch)
        projection = model.apply(
            {"params": params},
            batch["input_ids"],
            batch["segment_ids"],
            batch["position_ids"],
            batch.get("masked_positions"),
            method="before_projection",
        )
        return jnp.sum(token_losses(projection, labels_BP)[0] * weights_BP, axis=1)

    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(losses, in_shardings=(whole, rows), out_shardings=whole)


def batches(
    lengths: np.ndarray, batch_tokens: int, devices: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """(copies, tokens that each is padded to, rows), the shortest copies first.

    All batches of a width have the same number of rows, so that it is compiled once.
    """
    units = np.where(lengths <= _COARSE, _FINE, _COARSE)
    widths = -(-lengths // units) * units
    for width in np.unique(widths):
        of_width = np.flatnonzero(widths == width)
        size = min(max(1, batch_tokens // width), len(of_width))
        size = -(-size // devices) * devices
        for first in range(0, len(of_width), size):
            yield of_width[first : first + size], int(width), size


def padded(sentences: Sequence[np.ndarray], width: int, rows: int) -> dict[str, np.ndarray]:
    """The sentences in rows of one width, filled up with rows of padding."""
    ids_BL, segments_BL = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.int32)
    for row, ids in enumerate(sentences):
        ids_BL[row, : len(ids)], segments_BL[row, : len(ids)] = ids, 1
    positions_BL = np.where(segments_BL > 0, np.arange(width, dtype=np.int32), 0)
    return {"input_ids": ids_BL, "segment_ids": segments_BL, "position_ids": positions_BL}


def _mask(batch: dict[str, np.ndarray], positions: np.ndarray, method: str, marks: Marks) -> None:
    """Masks one token of each copy, or all of its word from it on, and adds what it was."""
    ids_BL = batch["input_ids"]
    positions_B1 = np.zeros((len(ids_BL), 1), np.int32)
    positions_B1[: len(positions), 0] = positions
    batch["masked_positions"] = positions_B1
    batch["masked_labels"] = np.take_along_axis(ids_BL, positions_B1, axis=1)
    masked_BL = np.arange(ids_BL.shape[1]) == positions_B1
    if method == "pll-word-l2r":
        inside_BL = _inside_words(ids_BL, batch["segment_ids"], marks)
        later_BL = np.arange(ids_BL.shape[1]) > positions_B1
        masked_BL |= later_BL & np.logical_and.accumulate(inside_BL | ~later_BL, axis=1)
    masked_BL &= batch["segment_ids"] > 0
    ids_BL[masked_BL] = marks.mask_id


def _inside_words(ids_BL: np.ndarray, segments_BL: np.ndarray, marks: Marks) -> np.ndarray:
    """bool [B, L]: the tokens of a sentence that do not begin a word."""
    in_sentence_BL = segments_BL > 0
    in_sentence_BL[:, 0] = False  # [CLS]
    np.put_along_axis(in_sentence_BL, segments_BL.sum(1, keepdims=True) - 1, False, 1)  # [SEP]
    unspaced_V = np.zeros_like(marks.word_start_V) if marks.unspaced_V is None else marks.unspaced_V
    starts_BL = word_starts(
        in_sentence_BL, segments_BL, marks.word_start_V[ids_BL], unspaced_V[ids_BL]
    )
    return in_sentence_BL & ~starts_BL


def _subtract(scores: np.ndarray, computed: tuple[np.ndarray, jax.Array] | None) -> None:
    """Takes the losses of a batch's copies off the scores of their sentences."""
    if computed is not None:
        owners, loss_B = computed
        np.subtract.at(scores, owners, np.asarray(loss_B, np.float64)[: len(owners)])
