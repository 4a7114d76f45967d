import dataclasses
import functools
import itertools

import numpy as np
import pytest

from deberta_jax.data.config import MaskingConfig
from deberta_jax.data.input import (
    position_ids,
    steps_per_epoch,
    tokens_per_step,
    train_batches,
    validation_batches,
)
from deberta_jax.data.masking import Masker, unmasked
from deberta_jax.errors import UserError
from tests.data.conftest import COMEDIES

MASKING = functools.partial(Masker, MaskingConfig())


def train(prepared, count, *, start_step=0, batch_size=8, config=COMEDIES, **kwargs):
    start = start_step * batch_size
    batches = train_batches(
        prepared, config, MASKING, batch_size=batch_size, start_sample=start, **kwargs
    )
    return list(itertools.islice(batches, count))


def validation(prepared, **kwargs):
    return list(validation_batches(prepared, COMEDIES, MASKING, **kwargs))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
            assert one[name].dtype == other[name].dtype


def block(batch_size, index, processes):
    rows = batch_size // processes
    return (range(index * rows, (index + 1) * rows),)


def joined(parts):
    """The processes' blocks of each batch, one above the other."""
    return [
        {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        for blocks in zip(*parts, strict=True)
    ]


def originals(batch):
    """input_ids with the targets uncovered."""
    ids = batch["input_ids"].copy()
    rows, entries = np.nonzero(batch["masked_weights"])
    ids[rows, batch["masked_positions"][rows, entries]] = batch["masked_labels"][rows, entries]
    return ids


def rows_of(batches):
    return [row.tobytes() for batch in batches for row in originals(batch)]


def rows_in(prepared, split):
    return sorted(record["input_ids"].tobytes() for record in prepared.source(split))


def test_shapes(prepared, seed):
    (batch,) = train(prepared, 1, seed=seed)
    shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
    i32 = np.dtype(np.int32)
    assert shapes == {
        "input_ids": ((8, 64), i32),
        "segment_ids": ((8, 64), i32),
        "position_ids": ((8, 64), i32),
        "masked_positions": ((8, 16), i32),
        "masked_labels": ((8, 16), i32),
        "masked_weights": ((8, 16), np.dtype(np.float32)),
    }


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_have_the_batch(prepared, seed, processes):
    parts = [
        train(prepared, 5, seed=seed, rows=block(8, index, processes)) for index in range(processes)
    ]
    assert parts[0][0]["input_ids"].shape == (8 // processes, 64)
    assert_same(joined(parts), train(prepared, 5, seed=seed))


def test_rows_in_several_blocks_are_those_rows_and_nothing_else_is_read(
    prepared, seed, monkeypatch
):
    """As where a mesh winds through the hosts."""
    source, read = prepared.source("train"), []

    class Watched:
        def __len__(self):
            return len(source)

        def __getitems__(self, records):
            read.extend(records)
            return source.__getitems__(records)

    whole = train(prepared, 1, seed=seed)[0]
    monkeypatch.setattr(type(prepared), "source", lambda *_: Watched())
    config = dataclasses.replace(COMEDIES, prefetch=0)
    (batch,) = train(prepared, 1, seed=seed, config=config, rows=(range(1, 3), range(6, 7)))
    assert_same([batch], [{name: rows[[1, 2, 6]] for name, rows in whole.items()}])
    assert len(read) == 3


@pytest.mark.parametrize("step", [1, 6, 1000])
def test_starting_at_a_step_is_iterating_to_it(prepared, seed, step):
    expected = train(prepared, step + 3, seed=seed)[step:]
    assert_same(train(prepared, 3, seed=seed, start_step=step), expected)


@pytest.mark.parametrize(("before", "after"), [(8, 12), (12, 8), (5, 16)])
def test_another_batch_size_neither_skips_nor_repeats(prepared, seed, before, after):
    """An epoch that is read by two batch sizes, the second from where the first one stopped."""
    records = prepared.metadata.splits["train"].sequences
    read = 3 * before
    first = train(prepared, 3, seed=seed, batch_size=before)
    rest = train_batches(
        prepared, COMEDIES, MASKING, batch_size=after, seed=seed, start_sample=read
    )
    rest = list(itertools.islice(rest, -(-(records - read) // after)))
    rows = [tuple(row) for batch in [*first, *rest] for row in originals(batch)][:records]
    source = prepared.source("train")
    want = [tuple(record["input_ids"]) for record in source.__getitems__(list(range(records)))]
    assert sorted(rows) == sorted(want)


def test_a_far_step_is_as_near_as_any(prepared, seed):
    (batch,) = train(prepared, 1, seed=seed, start_step=10**10)
    assert batch["masked_weights"].any()


@pytest.mark.parametrize("prefetch", [0, 1, 9])
def test_prefetching_changes_nothing(prepared, seed, prefetch):
    config = dataclasses.replace(COMEDIES, prefetch=prefetch)
    assert_same(train(prepared, 12, seed=seed, config=config), train(prepared, 12, seed=seed))


def test_an_epoch_is_every_record_once_in_a_new_order(prepared, seed):
    total = prepared.metadata.splits["train"].sequences
    batches = train(prepared, -(-2 * total // 8), seed=seed)
    rows = rows_of(batches)
    first, second = rows[:total], rows[total : 2 * total]
    assert sorted(first) == sorted(second) == rows_in(prepared, "train")
    assert first != second
    stored = [record["input_ids"].tobytes() for record in prepared.source("train")]
    place = {row: number for number, row in enumerate(stored)}
    for rows in (first, second):
        order = np.array([place[row] for row in rows])
        assert abs(np.corrcoef(order, np.arange(total))[0, 1]) < 5 / total**0.5


def test_a_batch_may_exceed_the_split(prepared, seed):
    total = prepared.metadata.splits["train"].sequences
    (batch,) = train(prepared, 1, seed=seed, batch_size=2 * total)
    assert sorted(rows_of([batch])) == sorted(2 * rows_in(prepared, "train"))


def test_seeds_and_steps_differ(prepared, seed):
    one, two = train(prepared, 2, seed=seed)
    (other,) = train(prepared, 1, seed=seed + 1)
    for batch in (two, other):
        assert not np.array_equal(originals(one), originals(batch))
    positions = [batch["masked_positions"] for batch in (one, two, other)]
    assert not np.array_equal(positions[0], positions[1])
    assert not np.array_equal(positions[0], positions[2])


def test_the_same_row_is_masked_anew_in_every_epoch(prepared, seed):
    total = prepared.metadata.splits["train"].sequences
    both = train(prepared, -(-2 * total // 8), seed=seed)
    wanted = rows_of(both)[0]
    seen = [
        batch["input_ids"][row].tobytes()
        for batch in both
        for row in range(8)
        if originals(batch)[row].tobytes() == wanted
    ]
    assert len(seen) >= 2 and len(set(seen)) >= 2


def test_position_ids(prepared, seed):
    segments = np.array([[1, 1, 1, 2, 2, 3, 0, 0], [1] * 8, [0] * 8])
    expected = [[0, 1, 2, 0, 1, 0, 0, 0], [*range(8)], [0] * 8]
    found = position_ids(segments)
    assert found.tolist() == expected and found.dtype == np.int32
    (batch,) = train(prepared, 1, seed=seed)
    np.testing.assert_array_equal(batch["position_ids"], position_ids(batch["segment_ids"]))
    np.testing.assert_array_equal(
        (batch["position_ids"] == 0) & (batch["segment_ids"] > 0), originals(batch) == 1
    )


@pytest.mark.parametrize("batch_size", [4, 7, 1000])
def test_validation_drops_nothing(prepared, seed, batch_size):
    batches = validation(prepared, batch_size=batch_size, seed=seed)
    assert {batch["input_ids"].shape for batch in batches} == {(batch_size, 64)}
    total = prepared.metadata.splits["validation"].sequences
    assert len(batches) == -(-total // batch_size)
    rows = rows_of(batches)
    stored = [record["input_ids"].tobytes() for record in prepared.source("validation")]
    assert rows[:total] == stored
    padding = len(rows) - total
    if padding:
        last = batches[-1]
        for name in ("input_ids", "segment_ids", "masked_weights", "masked_labels"):
            assert not last[name][-padding:].any()


def test_validation_is_the_same_every_time(prepared, seed):
    everything = validation(prepared, batch_size=8, seed=seed)
    assert_same(validation(prepared, batch_size=8, seed=seed), everything)
    assert_same(validation(prepared, batch_size=8, seed=seed, num_batches=3), everything[:3])
    many = validation(prepared, batch_size=8, seed=seed, num_batches=10**6)
    assert_same(many, everything)


def test_validation_processes_together_have_the_batch(prepared, seed):
    parts = [
        validation(prepared, batch_size=12, seed=seed, rows=block(12, index, 4))
        for index in range(4)
    ]
    assert_same(joined(parts), validation(prepared, batch_size=12, seed=seed))


def test_clock(prepared):
    train_split = prepared.metadata.splits["train"]
    assert steps_per_epoch(prepared, 10) == train_split.sequences / 10
    tokens = steps_per_epoch(prepared, 10) * tokens_per_step(prepared, 10)
    assert tokens == pytest.approx(train_split.positions)
    assert 0.9 * 640 < tokens_per_step(prepared, 10) <= 640


def test_mistakes(prepared):
    with pytest.raises(UserError, match="batch_size=0"):
        train_batches(prepared, COMEDIES, MASKING, batch_size=0, seed=0)
    with pytest.raises(UserError, match=r"masking.rate=2"):
        wrong = functools.partial(Masker, MaskingConfig(rate=2.0))
        train_batches(prepared, COMEDIES, wrong, batch_size=4, seed=0)


def test_without_masking_the_rows_are_the_text_itself(prepared):
    """The same rows in the same order, and nothing else; of both splits."""
    text = lambda tokenizer, seed: unmasked  # noqa: E731
    plain = validation_batches(prepared, COMEDIES, text, batch_size=8, seed=3)
    for batch, masked in zip(plain, validation(prepared, batch_size=8, seed=3), strict=True):
        assert set(batch) == {"input_ids", "segment_ids", "position_ids"}
        for name in ("segment_ids", "position_ids"):
            np.testing.assert_array_equal(batch[name], masked[name])
        np.testing.assert_array_equal(batch["input_ids"], originals(masked))
    plain = next(train_batches(prepared, COMEDIES, text, batch_size=8, seed=3, start_sample=40))
    (masked,) = train(prepared, 1, seed=3, start_step=5)
    np.testing.assert_array_equal(plain["input_ids"], originals(masked))
