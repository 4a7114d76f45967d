import hashlib
import itertools
import time
import types

import numpy as np
import pytest

from deberta_jax.data.config import MaskingConfig
from deberta_jax.data.masking import derive_seed, mask_batch, num_predictions, tile_spans
from deberta_jax.errors import UserError

PIECES = 500
MASK_ID = PIECES
IS_SPECIAL_V = np.isin(np.arange(PIECES + 1), [0, 1, 2, 3, MASK_ID])
# Every word starts at an even id.
WORD_START_V = np.arange(PIECES + 1) % 2 == 0
VOCABULARY = types.SimpleNamespace(
    word_start_V=WORD_START_V,
    unspaced_V=np.zeros(PIECES + 1, bool),
    is_special_V=IS_SPECIAL_V,
    mask_id=MASK_ID,
    num_ordinary=PIECES - 4,
)


def fresh_batch(seed, rows, length, *, words_only=False, whole_rows=False):
    """Rows of [CLS] text [SEP] runs, some [UNK], and padding behind."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(2, PIECES // 2, (rows, length)) * 2
    if not words_only:
        ids += generator.random((rows, length)) < 0.4
    ids[generator.random((rows, length)) < 0.01] = 3
    segments = np.ones((rows, length), np.int32)
    for row in range(rows):
        last = length if whole_rows else generator.integers(length // 2, length + 1)
        cuts = [] if whole_rows else sorted(generator.integers(1, last, 2))
        for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, last], strict=True), start=1):
            if end - start > 1:
                ids[row, start], ids[row, end - 1] = 1, 2
            segments[row, start:end] = number
        ids[row, last:], segments[row, last:] = 0, 0
    return ids.astype(np.int32), segments


def mask(ids, segments, config=MaskingConfig(), *, seed=0, step=0, first_row=0):  # noqa: B008
    return mask_batch(
        ids,
        segments,
        config,
        VOCABULARY,
        seed=seed,
        step=step,
        first_row=first_row,
    )


def targets(ids, masked):
    """bool [B, L]"""
    chosen = np.zeros(ids.shape, bool)
    rows, entries = np.nonzero(masked["masked_weights"])
    chosen[rows, masked["masked_positions"][rows, entries]] = True
    return chosen


@pytest.mark.parametrize("max_ngram", [1, 3])
@pytest.mark.parametrize("length", [8, 128, 512])
def test_what_holds_of_every_batch(seed, max_ngram, length):
    ids, segments = fresh_batch(seed, 64, length)
    ids[7], segments[7] = 0, 0
    kept = ids.copy()
    config = MaskingConfig(max_ngram=max_ngram)
    masked = mask(ids, segments, config, seed=seed)
    np.testing.assert_array_equal(ids, kept)
    P = num_predictions(config, length)
    positions, labels, weights = (
        masked[name] for name in ("masked_positions", "masked_labels", "masked_weights")
    )
    assert positions.shape == labels.shape == weights.shape == (64, P)
    assert (positions.dtype, labels.dtype, weights.dtype) == (np.int32, np.int32, np.float32)
    assert masked["input_ids"].dtype == np.int32
    real = weights == 1
    assert (real | (weights == 0)).all()
    assert not positions[~real].any() and not labels[~real].any()
    assert (np.diff(real.astype(int), axis=1) <= 0).all()
    assert (np.diff(positions, axis=1)[real[:, 1:]] > 0).all()
    np.testing.assert_array_equal(labels[real], np.take_along_axis(ids, positions, 1)[real])
    assert not IS_SPECIAL_V[labels[real]].any()
    chosen = targets(ids, masked)
    np.testing.assert_array_equal(masked["input_ids"][~chosen], ids[~chosen])
    seen = masked["input_ids"][chosen]
    assert ((seen == MASK_ID) | ~IS_SPECIAL_V[seen]).all()
    assert not weights[7].any()


@pytest.mark.parametrize("max_ngram", [1, 3, 5])
@pytest.mark.parametrize("length, rate", [(64, 0.15), (512, 0.15), (512, 0.4)])
def test_rate(seed, max_ngram, length, rate):
    ids, segments = fresh_batch(seed, 400, length)
    config = MaskingConfig(max_ngram=max_ngram, rate=rate)
    total = sum(mask(ids, segments, config, seed=seed, step=step)["masked_weights"].sum()
                for step in range(40 if length == 64 else 8))  # fmt: skip
    maskable = (~IS_SPECIAL_V[ids]).sum() * (40 if length == 64 else 8)
    assert total / maskable == pytest.approx(rate, rel=0.01)


def test_shares_of_mask_random_and_kept(seed):
    ids, segments = fresh_batch(seed, 1000, 512)
    masked = mask(ids, segments, seed=seed)
    chosen = targets(ids, masked)
    seen, original = masked["input_ids"][chosen], ids[chosen]
    count = len(seen)
    assert (seen == MASK_ID).mean() == pytest.approx(0.8, abs=5 * (0.16 / count) ** 0.5)
    kept = 0.1 + 0.1 / (PIECES - 4)
    assert (seen == original).mean() == pytest.approx(kept, abs=5 * (0.09 / count) ** 0.5)
    replaced = seen[(seen != MASK_ID) & (seen != original)]
    frequency = np.bincount(replaced, minlength=PIECES)
    assert not frequency[:4].any()
    expected = len(replaced) / (PIECES - 4)
    assert abs(frequency[4:PIECES] - expected).max() < 6 * expected**0.5


@pytest.mark.parametrize("mask_share, random_share", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_extreme_shares(seed, mask_share, random_share):
    ids, segments = fresh_batch(seed, 50, 128)
    config = MaskingConfig(mask_share=mask_share, random_share=random_share)
    masked = mask(ids, segments, config, seed=seed)
    chosen = targets(ids, masked)
    seen = masked["input_ids"][chosen]
    assert (seen == MASK_ID).all() == bool(mask_share)
    if not mask_share:
        assert (seen == ids[chosen]).mean() < 0.05 if random_share else (seen == ids[chosen]).all()


@pytest.mark.parametrize("max_ngram", [2, 3, 4])
def test_span_lengths(seed, max_ngram):
    """With few targets, spans rarely touch, so runs of targets are spans."""
    ids, segments = fresh_batch(seed, 100, 8192, words_only=True, whole_rows=True)
    config = MaskingConfig(rate=0.02, max_ngram=max_ngram)
    counts = np.zeros(3 * max_ngram + 1)
    for step in range(2):
        chosen = targets(ids, mask(ids, segments, config, seed=seed, step=step))
        edges = np.diff(np.pad(chosen, ((0, 0), (1, 1))).astype(int), axis=1)
        lengths = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
        counts += np.bincount(lengths, minlength=len(counts))[: len(counts)]
    found = counts[1 : max_ngram + 1] / counts.sum()
    wanted = 1 / np.arange(1, max_ngram + 1)
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=0.035)
    assert counts[max_ngram + 1 :].sum() / counts.sum() < 0.05


@pytest.mark.parametrize("max_ngram", [2, 3, 5])
def test_spans_are_whole_words_of_one_segment(seed, max_ngram):
    ids, segments = fresh_batch(seed, 200, 128)
    generator = np.random.default_rng(seed)
    maskable, word_start = ~IS_SPECIAL_V[ids], WORD_START_V[ids]
    spans = tile_spans(
        maskable, segments, word_start,
        generator.integers(0, 2**64, ids.shape, np.uint64),
        generator.integers(0, 2**64, 200, np.uint64),
        max_ngram=max_ngram,
    )  # fmt: skip
    words = np.zeros(max_ngram + 1, int)
    for row in range(200):
        for span in np.unique(spans[row, maskable[row]]):
            (at,) = np.nonzero((spans[row] == span) & maskable[row])
            assert (np.diff(at) == 1).all()
            assert len(set(segments[row, at])) == 1
            before = at[0] - 1
            fresh = before < 0 or not maskable[row, before]
            fresh = fresh or segments[row, before] != segments[row, at[0]]
            assert word_start[row, at[0]] or fresh
            words[1 + word_start[row, at[1:]].sum()] += 1
    assert (words[1:] > 0).all()


def test_words_are_masked_whole(seed):
    ids, segments = fresh_batch(seed, 200, 256)
    masked = mask(ids, segments, MaskingConfig(num_predictions=64), seed=seed)
    chosen = targets(ids, masked)
    maskable = ~IS_SPECIAL_V[ids]
    joined = maskable[:, 1:] & maskable[:, :-1] & ~WORD_START_V[ids[:, 1:]]
    joined &= segments[:, 1:] == segments[:, :-1]
    assert joined.mean() > 0.2
    np.testing.assert_array_equal(chosen[:, 1:][joined], chosen[:, :-1][joined])


def test_single_tokens_split_words(seed):
    ids, segments = fresh_batch(seed, 200, 256)
    chosen = targets(ids, mask(ids, segments, MaskingConfig(max_ngram=1), seed=seed))
    inside = ~WORD_START_V[ids[:, 1:]] & ~IS_SPECIAL_V[ids[:, 1:]] & ~IS_SPECIAL_V[ids[:, :-1]]
    both = (chosen[:, 1:] & chosen[:, :-1])[inside].mean()
    assert both == pytest.approx(0.15**2, rel=0.25)


@pytest.mark.parametrize("max_ngram", [1, 3])
def test_positions_are_equally_likely(seed, max_ngram):
    ids, segments = fresh_batch(seed, 500, 512, whole_rows=True)
    config = MaskingConfig(max_ngram=max_ngram)
    hits, maskable = np.zeros(512), (~IS_SPECIAL_V[ids]).sum(axis=0) * 30
    for step in range(30):
        hits += targets(ids, mask(ids, segments, config, seed=seed, step=step)).sum(axis=0)
    rate = hits[1:-1] / maskable[1:-1]
    # Five standard deviations of the narrowest part.
    for part in [*np.array_split(rate, 10), rate[:40], rate[-40:], rate[:8], rate[-8:]]:
        assert part.mean() == pytest.approx(0.15, rel=0.05)


def test_pure_and_different_by_step_and_seed(seed):
    ids, segments = fresh_batch(seed, 20, 512, whole_rows=True)
    one = mask(ids, segments, seed=seed, step=3)
    for name, values in mask(ids, segments, seed=seed, step=3).items():
        np.testing.assert_array_equal(values, one[name])
    for other in (
        mask(ids, segments, seed=seed, step=4),
        mask(ids, segments, seed=seed + 1, step=3),
        mask(ids, segments, seed=seed, step=3, first_row=1),
    ):
        assert (other["masked_positions"] != one["masked_positions"]).mean() > 0.5
    alike = mask(ids[:1].repeat(20, 0), segments[:1].repeat(20, 0), seed=seed)["masked_positions"]
    assert len(np.unique(alike, axis=0)) == 20


@pytest.mark.parametrize("max_ngram", [1, 3])
@pytest.mark.parametrize("length", [37, 128])
def test_a_block_of_rows_is_a_slice_of_the_batch(seed, max_ngram, length):
    ids, segments = fresh_batch(seed, 48, length)
    config = MaskingConfig(max_ngram=max_ngram)
    whole = mask(ids, segments, config, seed=seed, step=9, first_row=96)
    for start, end in ((0, 12), (12, 13), (13, 48)):
        block = mask(
            ids[start:end], segments[start:end], config, seed=seed, step=9, first_row=96 + start
        )
        for name, values in block.items():
            np.testing.assert_array_equal(values, whole[name][start:end])


def test_number_of_targets_is_capped(seed):
    ids, segments = fresh_batch(seed, 100, 128, whole_rows=True)
    masked = mask(ids, segments, MaskingConfig(rate=0.5, num_predictions=10), seed=seed)
    assert masked["masked_weights"].shape == (100, 10)
    assert (masked["masked_weights"].sum(axis=1) == 10).all()


def test_all_tokens(seed):
    ids, segments = fresh_batch(seed, 30, 64)
    masked = mask(ids, segments, MaskingConfig(rate=1.0), seed=seed)
    np.testing.assert_array_equal(targets(ids, masked), ~IS_SPECIAL_V[ids])


def test_num_predictions():
    assert num_predictions(MaskingConfig(), 512) == 80
    assert num_predictions(MaskingConfig(), 128) == 24
    assert num_predictions(MaskingConfig(rate=0.15), 160) == 24
    assert num_predictions(MaskingConfig(num_predictions=77), 512) == 77
    assert num_predictions(MaskingConfig(rate=1.0), 20) == 20


@pytest.mark.parametrize("field, value", [
    ("rate", 0.0), ("rate", 1.1), ("max_ngram", 0), ("mask_share", 1.5), ("random_share", 0.3),
    ("num_predictions", 129), ("num_predictions", -1), ("max_word_pieces", 0),
    ("max_unspaced_pieces", 0), ("rate", 1e-9), ("rate", float("nan")),
])  # fmt: skip
def test_fields_out_of_range(field, value):
    with pytest.raises(UserError, match=f"masking.{field}={value}"):
        num_predictions(MaskingConfig(**{field: value}), 128)


def test_no_target_is_refused_however_much_room_there_is():
    with pytest.raises(UserError, match=r"rate=1e-09: it leaves no target.*128 tokens.*0\.0078"):
        num_predictions(MaskingConfig(rate=1e-9, num_predictions=8), 128)


def test_few_targets(seed):
    """Less than one a sequence: some have none."""
    ids, segments = fresh_batch(seed, 2000, 64, whole_rows=True)
    config = MaskingConfig(rate=0.25 / 64)
    masked = mask(ids, segments, config, seed=seed)
    count = masked["masked_weights"].sum()
    maskable = (~IS_SPECIAL_V[ids]).sum()
    assert masked["masked_weights"].shape == (2000, 8)
    assert count / maskable == pytest.approx(config.rate, rel=0.35)


@pytest.mark.parametrize("pieces, whole", [(32, True), (33, False), (500, False)])
def test_longest_word(pieces, whole, seed):
    """Beyond it every piece is a word, and spans are of pieces."""
    ids = np.full((400, 512), 101, np.int32)
    ids[:, 1 : 1 + pieces] = 101
    ids[:, 1] = ids[:, 1 + pieces :: 2] = 100
    segments = np.ones_like(ids)
    config = MaskingConfig(rate=0.1, num_predictions=512)
    chosen = targets(ids, mask(ids, segments, config, seed=seed))[:, 1 : 1 + pieces]
    assert chosen.mean() == pytest.approx(0.1, abs=0.06 if whole else 0.03)
    assert (chosen == chosen[:, :1]).all() == whole


def test_spaced_text_has_the_targets_it_had():
    """Runs go on with the targets that they began with: these are from before words had bounds."""
    digest = hashlib.sha256()
    for length, max_ngram in itertools.product((32, 128, 512), (1, 3, 5)):
        ids, segments = fresh_batch(length, 40, length)
        config = MaskingConfig(max_ngram=max_ngram)
        for values in mask(ids, segments, config, seed=7, step=3, first_row=40).values():
            digest.update(np.ascontiguousarray(values).tobytes())
    assert digest.hexdigest() == "788eb85fb60b3c86464ad0182d72856e5cf058766c289a570b7e74392c8fabf1"


def test_purposes_have_seeds_of_their_own():
    seeds = {derive_seed(seed, purpose) for seed in range(-3, 50) for purpose in ("a", "b")}
    assert len(seeds) == 106 and max(seeds) < 2**64
    assert derive_seed(1, "a") == derive_seed(1, "a")


def test_speed(seed):
    ids, segments = fresh_batch(seed, 64, 512, whole_rows=True)
    mask(ids, segments)
    start = time.process_time()
    for step in range(20):
        mask(ids, segments, step=step)
    speed = 20 * ids.size / (time.process_time() - start)
    # A Python loop over rows manages 4 million; half the speed aimed at leaves room for bad days.
    assert speed > 5e6
