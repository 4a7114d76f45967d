"""Targets for masked language modelling: n-gram spans of whole words, uniform over positions."""

import hashlib
import math
from typing import NamedTuple, Protocol

import jax
import numpy as np

from deberta_jax.data.config import MaskingConfig
from deberta_jax.data.tokenizer import FIRST_ORDINARY_ID, Tokenizer
from deberta_jax.data.words import word_starts
from deberta_jax.errors import UserError

# Rows on the host, by name: [B, ...].
Rows = dict[str, np.ndarray]

_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(0xFFFFFFFF00000000)
_HALF = np.uint64(32)
# Two of a row's draws belong to the row as a whole: the crossing span's fate, and the first tile.
_ROW_DRAWS = 2
# Philox makes four numbers of each count.
_PER_COUNT = 4


def derive_seed(seed: int, purpose: str) -> int:
    """A 64-bit seed for one purpose, unrelated to the seeds of other purposes."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def num_predictions(config: MaskingConfig, sequence_length: int) -> int:
    """P, the number of targets that a sequence of `sequence_length` tokens has room for.

    Raises:
        UserError: a field of `config` is out of range, or a sequence has no target.
    """
    check(config)
    if not 0 <= config.num_predictions <= sequence_length:
        raise UserError(
            f"masking.num_predictions={config.num_predictions}: it has to be 0 to the sequence "
            f"length, {sequence_length}"
        )
    # The tolerance keeps 0.15 * 40 = 6.000000000000001 from counting as 7.
    wanted = math.ceil(config.rate * sequence_length - 1e-6)
    if wanted < 1:
        raise UserError(
            f"masking.rate={config.rate}: it leaves no target in sequences of {sequence_length} "
            f"tokens; for one in each it has to be {1 / sequence_length:.2g}"
        )
    if config.num_predictions:
        return config.num_predictions
    return min(-(-wanted // 8) * 8, sequence_length)


def check(config: MaskingConfig) -> None:
    """Raises `UserError` for a field that is out of range whatever the length."""
    for name, good, right in (
        ("rate", 0 < config.rate <= 1, "above 0, at most 1"),
        ("max_ngram", config.max_ngram >= 1, "1 or more"),
        ("max_word_pieces", config.max_word_pieces >= 1, "1 or more"),
        ("max_unspaced_pieces", config.max_unspaced_pieces >= 1, "1 or more"),
        ("mask_share", 0 <= config.mask_share <= 1, "0 to 1"),
        ("random_share", 0 <= config.random_share <= 1 - config.mask_share + 1e-9,
         "0 to 1 - mask_share"),
    ):  # fmt: skip
        if not good:
            raise UserError(f"masking.{name}={getattr(config, name)}: it has to be {right}")


class Vocabulary(Protocol):
    """What masking needs to know of a tokenizer.

    Attributes:
        word_start_V: bool [V], tokens that begin a word.
        unspaced_V: bool [V], tokens of a script that has no blanks between words.
        is_special_V: bool [V], tokens that are never targets.
        mask_id: the id of [MASK].
        num_ordinary: random replacements are uniform over this many ids after the special pieces.
    """

    @property
    def word_start_V(self) -> np.ndarray: ...
    @property
    def unspaced_V(self) -> np.ndarray: ...
    @property
    def is_special_V(self) -> np.ndarray: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def num_ordinary(self) -> int: ...


class _Draws(NamedTuple):
    """The random 64-bit numbers behind a block of rows; each half of one is used on its own."""

    span_BL: np.ndarray
    target_BP: np.ndarray
    row_B2: np.ndarray


def mask_batch(
    input_ids_BL: np.ndarray,
    segment_ids_BL: np.ndarray,
    config: MaskingConfig,
    vocabulary: Vocabulary,
    *,
    seed: int,
    step: int,
    first_row: int = 0,
) -> dict[str, np.ndarray]:
    """Chooses targets in packed sequences and hides them.

    A pure function: row b is row `first_row + b` of the global batch of `step`, and gets the same
    targets in whatever block of rows it is masked.

    A row's words (`data.words`) are tiled with spans of n words, p(n) proportional to 1/n, which
    end early where a segment ends. Spans are taken in random order until `rate` of the row's
    ordinary tokens are targets; the span that would go over is taken with such a probability that
    the expected share is `rate` exactly, and loses its tail where only part of it has room among P
    targets.

    Args:
        input_ids_BL: int [B, L] tokens, special ones included.
        segment_ids_BL: int [B, L], the document that each token belongs to.
        config: what to mask and how.
        vocabulary: such as a `Tokenizer`. Its words are not read when `max_ngram` is 1: a span is
            then a single token.
        seed: names the draws with `step`; from 0, below 2**64.
        step: likewise.
        first_row: the global row that row 0 of this block is.

    Returns:
        input_ids: int32 [B, L], with the targets hidden.
        masked_positions: int32 [B, P], ascending, then 0 for the unused entries.
        masked_labels: int32 [B, P], the tokens that were there; 0 for the unused entries.
        masked_weights: float32 [B, P], 1 for targets, 0 for the unused entries.
    """
    B, L = input_ids_BL.shape
    P = num_predictions(config, L)
    draws = _draw(seed, step, first_row, (B, L, P))
    maskable_BL = ~np.take(vocabulary.is_special_V, input_ids_BL)
    if config.max_ngram > 1:
        starts_BL = word_starts(
            maskable_BL, segment_ids_BL,
            np.take(vocabulary.word_start_V, input_ids_BL),
            np.take(vocabulary.unspaced_V, input_ids_BL),
            max_pieces=config.max_word_pieces, max_unspaced_pieces=config.max_unspaced_pieces,
        )  # fmt: skip
        span_BL = tile_spans(
            maskable_BL, segment_ids_BL, starts_BL, draws.span_BL, draws.row_B2[:, 1],
            max_ngram=config.max_ngram,
        )  # fmt: skip
        priority_BL = _take(draws.span_BL, span_BL)
    else:
        priority_BL = draws.span_BL
    positions_BP, chosen_BP = _choose(
        maskable_BL, priority_BL, _uniform(draws.row_B2[:, 0] >> _HALF), config.rate, P
    )
    labels_BP = np.where(chosen_BP, _take(input_ids_BL, positions_BP), 0).astype(np.int32)
    seen_BP = _disguise(labels_BP, draws.target_BP, config, vocabulary)
    masked_BL = input_ids_BL.astype(np.int32)
    row_BP = np.broadcast_to(np.arange(B)[:, None], (B, P))
    masked_BL[row_BP[chosen_BP], positions_BP[chosen_BP]] = seen_BP[chosen_BP]
    return {
        "input_ids": masked_BL,
        "masked_positions": positions_BP,
        "masked_labels": labels_BP,
        "masked_weights": chosen_BP.astype(np.float32),
    }


def _draw(seed: int, step: int, first_row: int, shape_BLP: tuple[int, int, int]) -> _Draws:
    B, L, P = shape_BLP
    counts_per_row = -(-(L + P + _ROW_DRAWS) // _PER_COUNT)
    generator = np.random.Philox(key=np.array([seed, step], np.uint64))
    generator.advance(first_row * counts_per_row)
    raw = generator.random_raw(B * counts_per_row * _PER_COUNT).reshape(B, -1)
    return _Draws(raw[:, :L], raw[:, L : L + P], raw[:, L + P : L + P + _ROW_DRAWS])


def _uniform(bits: np.ndarray) -> np.ndarray:
    """32-bit numbers to float64 in [0, 1)."""
    return (bits & _LOW) * 2.0**-32


def _take(values_BL: np.ndarray, index_BX: np.ndarray) -> np.ndarray:
    """values_BL[b, index_BX[b, x]]."""
    # `np.take_along_axis` takes twice as long.
    first_B1 = np.arange(len(values_BL))[:, None] * values_BL.shape[1]
    return np.take(values_BL.ravel(), index_BX + first_B1)


def tile_spans(
    maskable_BL: np.ndarray,
    segment_ids_BL: np.ndarray,
    word_start_BL: np.ndarray,
    draws_BL: np.ndarray,
    first_B: np.ndarray,
    *,
    max_ngram: int,
) -> np.ndarray:
    """Numbers the spans of each row: intp [B, L], the span that every token belongs to.

    Spans are runs of 1 to `max_ngram` words, p(n) proportional to 1/n, from a tiling that began
    long before the row did, so that no position is closer to a span's start than another. They
    end where the run of maskable tokens or the segment ends. Tokens that are not maskable carry
    a number without meaning.

    Args:
        maskable_BL, word_start_BL: bool [B, L].
        segment_ids_BL: int [B, L].
        draws_BL: uint64 [B, L], the lower halves make the lengths.
        first_B: uint64 [B], makes the tile that covers the row's first word.
    """
    B, L = maskable_BL.shape
    continued_BL = np.zeros((B, L), bool)
    continued_BL[:, 1:] = segment_ids_BL[:, 1:] == segment_ids_BL[:, :-1]
    continued_BL[:, 1:] &= maskable_BL[:, 1:] & maskable_BL[:, :-1]
    starts_word_BL = maskable_BL & (word_start_BL | ~continued_BL)
    # Words are numbered from 1, so that what precedes the first word of a row has number 0.
    word_BL = np.cumsum(starts_word_BL, axis=1, dtype=np.intp)
    ends_BL = np.cumsum(_lengths(draws_BL, first_B, max_ngram), axis=1, dtype=np.intp)
    starts_tile_BW = np.zeros((B, L + 1), bool)
    first_B1 = np.arange(B)[:, None] * (L + 1)
    starts_tile_BW.ravel()[np.minimum(ends_BL, L) + first_B1] = True
    # A tile that ends after word w has the next tile begin with word w + 1.
    tile_begins_BL = _take(starts_tile_BW, np.maximum(word_BL - 1, 0))
    starts_span_BL = starts_word_BL & (tile_begins_BL | ~continued_BL)
    return np.maximum(np.cumsum(starts_span_BL, axis=1, dtype=np.intp) - 1, 0)


def _lengths(draws_BL: np.ndarray, first_B: np.ndarray, max_ngram: int) -> np.ndarray:
    """int8 [B, L] words in each tile; the first is what the row sees of a tile begun before it."""
    weights = 1 / np.arange(1, max_ngram + 1)
    edges = np.cumsum(weights)[:-1] / weights.sum()
    low_BL = (draws_BL & _LOW).astype(np.uint32)
    lengths_BL = np.ones(draws_BL.shape, np.min_scalar_type(max_ngram))
    for edge in edges:
        lengths_BL += low_BL >= np.uint32(edge * 2**32)
    # A tile met at random has length n with probability proportional to n p(n), which is constant,
    # and the row begins at any of its words alike.
    whole_B = 1 + (_uniform(first_B) * max_ngram).astype(np.int64)
    lengths_BL[:, 0] = whole_B - (_uniform(first_B >> _HALF) * whole_B).astype(np.int64)
    return lengths_BL


def _choose(
    maskable_BL: np.ndarray, priority_BL: np.ndarray, luck_B: np.ndarray, rate: float, P: int
) -> tuple[np.ndarray, np.ndarray]:
    """The targets' positions, int32 [B, P], ascending, and which entries are targets, bool."""
    L = maskable_BL.shape[1]
    # The upper half orders spans, the lower a span's tokens: sorted, a row begins with its targets.
    keys_BL = np.where(maskable_BL, (priority_BL & _HIGH) | np.arange(L, dtype=np.uint64), ~_LOW)
    keys_BL[~maskable_BL] |= _LOW
    first_BP = np.sort(np.partition(keys_BL, P - 1, axis=1)[:, :P], axis=1)
    num_maskable_B = maskable_BL.sum(axis=1)
    budget_B = np.minimum(rate * num_maskable_B, P)
    crossing_B1 = np.clip(budget_B.astype(np.intp), 0, np.minimum(P, num_maskable_B) - 1)[:, None]
    span_B1 = _take(first_BP, np.maximum(crossing_B1, 0)) >> _HALF
    before_B = (first_BP >> _HALF < span_B1).sum(axis=1)
    span_length_B = ((keys_BL >> _HALF == span_B1) & maskable_BL).sum(axis=1)
    room_B = np.minimum(span_length_B, P - before_B)
    count_B = before_B + room_B * (luck_B * room_B < budget_B - before_B)
    chosen_BP = np.arange(P) < count_B[:, None]
    positions_BP = np.where(chosen_BP, first_BP & _LOW, np.uint64(L)).astype(np.int32)
    positions_BP.sort(axis=1)
    return np.where(chosen_BP, positions_BP, 0).astype(np.int32), chosen_BP


def _disguise(
    labels_BP: np.ndarray,
    draws_BP: np.ndarray,
    config: MaskingConfig,
    vocabulary: Vocabulary,
) -> np.ndarray:
    """What the model sees in place of each target: int32 [B, P]."""
    action_BP = _uniform(draws_BP >> _HALF)
    scaled_BP = (draws_BP & _LOW) * np.uint64(vocabulary.num_ordinary) >> _HALF
    random_BP = FIRST_ORDINARY_ID + scaled_BP.astype(np.int32)
    changed_BP = np.where(action_BP < config.mask_share + config.random_share, random_BP, labels_BP)
    return np.where(action_BP < config.mask_share, vocabulary.mask_id, changed_BP).astype(np.int32)


class Masker:
    """Rows of packed text to batches with hidden targets (`mask_batch`)."""

    def __init__(self, config: MaskingConfig, tokenizer: Tokenizer, seed: int):
        check(config)
        self._config, self._tokenizer, self._seed = config, tokenizer, seed

    @staticmethod
    def shapes(
        config: MaskingConfig, sequence_length: int, batch_size: int
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of every array of a global batch, without any data.

        Raises:
            UserError: a field of `config` is out of range.
        """
        shape = batch_size, num_predictions(config, sequence_length)
        integers, reals = (jax.ShapeDtypeStruct(shape, kind) for kind in (np.int32, np.float32))
        targets = {"masked_positions": integers, "masked_labels": integers}
        text = text_shapes(sequence_length, batch_size)
        return text | targets | {"masked_weights": reals}

    def __call__(self, text: Rows, step: int, first_row: int) -> Rows:
        """The batch of rows `first_row` on of the global batch of `step`."""
        masked = mask_batch(
            text["input_ids"],
            text["segment_ids"],
            self._config,
            self._tokenizer,
            seed=self._seed,
            step=step,
            first_row=first_row,
        )
        return text | masked


def unmasked(text: Rows, step: int, first_row: int) -> Rows:
    """The text as it is: the batch of a causal model, whose targets are its own next tokens."""
    del step, first_row
    return text


def text_shapes(sequence_length: int, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of rows of packed text."""
    tokens = jax.ShapeDtypeStruct((batch_size, sequence_length), np.int32)
    return dict.fromkeys(("input_ids", "segment_ids", "position_ids"), tokens)
