"""Buckets and batches: least padding, every example once an epoch, a function of seed and step."""

import itertools

import numpy as np
import pytest

from deberta_jax.data.tasks.batches import Batches, choose_lengths
from deberta_jax.errors import UserError


def items(seed, count=53, longest=60):
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        ids = rng.integers(4, 99, rng.integers(2, longest + 1)).astype(np.int32)
        ids[1] = 100 + number  # tells it from the others
        made.append(
            {
                "input_ids": ids,
                "segment_ids": np.ones_like(ids),
                "labels": np.int32(number),
                "weights": np.float32(1),
            }
        )
    return made


def padded(lengths, buckets):
    return sum(min(b for b in buckets if b >= length) for length in lengths)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_no_other_lengths_pad_less(count, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 64, 40) if rng.random() < 0.5 else rng.integers(1, 20, 30) ** 2 % 64
    lengths = np.maximum(lengths, 1)
    found = choose_lengths(lengths, count)
    assert len(found) <= count and all(length % 8 == 0 for length in found)
    top = -(-max(lengths) // 8) * 8
    below = range(8, top, 8)
    best = min(
        padded(lengths, (*some, top))
        for size in range(min(count, len(below) + 1))
        for some in itertools.combinations(below, size)
    )
    assert padded(lengths, found) == best


def made(seed):
    given = items(seed)
    sizes = [len(item["input_ids"]) for item in given]
    return given, Batches(given, choose_lengths(sizes, 3), 8, 0, seed)


def test_an_epoch_holds_every_example_once_in_batches_of_few_shapes(seed):
    given, batches = made(seed)
    assert batches.per_epoch == 7
    epoch = list(itertools.islice(batches.train(), 7))
    labels = np.concatenate([b["labels"][b["weights"] > 0] for b in epoch])
    assert sorted(labels) == list(range(53))
    assert len({b["input_ids"].shape for b in epoch}) <= 3
    for batch in epoch:
        for ids, segments, label, weight in zip(
            batch["input_ids"], batch["segment_ids"], batch["labels"], batch["weights"], strict=True
        ):
            want = given[label]["input_ids"] if weight else []
            np.testing.assert_array_equal(ids[: len(want)], want)
            assert segments.sum() == len(want) and not ids[len(want) :].any()
    assert batches.padded_tokens() == sum(b["input_ids"].size for b in epoch)


def test_a_batch_is_a_function_of_the_seed_and_the_step(seed):
    (_, one), (_, two) = made(seed), made(seed)
    ahead = list(itertools.islice(one.train(), 16))
    later = list(itertools.islice(two.train(9), 7))
    for x, y in zip(ahead[9:], later, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])
    orders = [tuple(b["labels"]) for b in ahead]
    assert orders[:7] != orders[7:14]


def test_a_process_has_the_rows_that_its_devices_hold(seed):
    _, batches = made(seed)
    held = (range(2), range(4, 6)), (range(2, 4), range(6, 8))
    order = np.argsort([0, 1, 4, 5, 2, 3, 6, 7])
    streams = [itertools.islice(batches.train(3, rows), 7) for rows in ((), *held)]
    for want, *parts in zip(*streams, strict=True):
        for name in want:
            joined = np.concatenate([part[name] for part in parts])[order]
            np.testing.assert_array_equal(joined, want[name])
    for (group, want), (again, part) in zip(batches.once(), batches.once(held[1]), strict=True):
        np.testing.assert_array_equal(group, again)
        np.testing.assert_array_equal(part["labels"], want["labels"][[2, 3, 6, 7]])


def test_a_batch_has_rows(seed):
    with pytest.raises(UserError, match=r"train\.batch_size is 0"):
        Batches(items(seed), (64,), 0, 0)


def test_once_tells_which_examples_its_rows_are(seed):
    given, batches = made(seed)
    seen = []
    for group, batch in batches.once():
        np.testing.assert_array_equal(batch["labels"][: len(group)], group)
        assert (batch["weights"] > 0).sum() == len(group)
        seen += list(group)
    assert sorted(seen) == list(range(len(given)))
