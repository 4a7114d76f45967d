"""The helpers of sweep files."""

import itertools
import math
import random

import pytest

from deberta_jax.errors import UserError
from deberta_jax.sweeps import integers, log_uniform, product, sample, uniform, zipped


def test_product_is_every_combination_once_the_last_part_fastest(seed):
    draw = random.Random(seed)
    values = {f"field{i}": draw.sample(range(99), draw.randint(1, 4)) for i in range(3)}
    found = list(product(values))
    want = [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]
    assert found == want
    parts = [{field: column} for field, column in values.items()]
    assert list(product(*parts)) == want
    # A part may be variants of several fields, or a generator of them.
    named = [{"name": "a", "x": 1}, {"name": "b", "x": 2, "y": 3}]
    assert list(product(iter(named), {"z": [7, 8]})) == [
        variant | {"z": z} for variant in named for z in (7, 8)
    ]


def test_zipped_takes_values_together(seed):
    count = random.Random(seed).randint(1, 9)
    found = list(zipped({"a": range(count), "b": [str(i) for i in range(count)]}))
    assert found == [{"a": i, "b": str(i)} for i in range(count)]


def test_a_sample_is_the_same_for_the_same_seed_and_within_its_bounds(seed):
    values = {
        "u": uniform(-2, 3),
        "l": log_uniform(1e-5, 1e-1),
        "i": integers(2, 4),
        "c": ["x", "y"],
    }
    found = list(sample(400, values, seed))
    assert found == list(sample(400, values, seed)) != list(sample(400, values, seed + 1))
    assert all(-2 <= v["u"] <= 3 and 1e-5 <= v["l"] <= 1e-1 for v in found)
    assert {v["i"] for v in found} == {2, 3, 4} and {v["c"] for v in found} == {"x", "y"}
    # Half of a log-uniform sample lies below the geometric mean.
    below = sum(math.log10(v["l"]) < -3 for v in found)
    assert 140 < below < 260


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: product({"a": [1]}, {"a": [2]}), "two parts set 'a'"),
        (lambda: product({"a": 3}), "a: 3 must be a list of values"),
        (lambda: product({"a": "abc"}), "a: 'abc' must be a list"),
        (lambda: zipped({"a": [1, 2], "b": [1]}), "there are: a 2, b 1"),
        (lambda: sample(1, {"a": log_uniform(0, 1)}), "0 < low <= high"),
    ],
)
def test_mistakes_say_what_is_wrong(make, message):
    with pytest.raises(UserError, match=message):
        list(make())
