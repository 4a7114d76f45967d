"""What a sweep file builds its variants with: product, zipped, sample.

A variant is a dict of the config's dotted fields and their values; "name" in it is the name that
tables and pictures show. A part is either such dicts, or one dict of lists of values by field.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from deberta_jax.errors import UserError

Variant = dict[str, object]
Part = Mapping[str, Sequence] | Iterable[Mapping[str, object]]


def product(*parts: Part) -> Iterator[Variant]:
    """Every combination of the parts, the last one varying fastest.

    `product({"a": [1, 2], "b": [3, 4]})` gives four variants; so does
    `product([{"a": 1}, {"a": 2}], {"b": [3, 4]})`.

    Raises:
        UserError: two parts set the same field.
    """
    for combination in itertools.product(*(_variants(part) for part in parts)):
        merged: Variant = {}
        for variant in combination:
            if twice := merged.keys() & variant.keys():
                raise UserError(f"product: two parts set {', '.join(map(repr, sorted(twice)))}")
            merged |= variant
        yield merged


def zipped(values: Mapping[str, Sequence]) -> Iterator[Variant]:
    """The first values of all fields together, then the second ones, and so on.

    Raises:
        UserError: the fields have different numbers of values.
    """
    columns = {field: _listed(field, column) for field, column in values.items()}
    if len({len(column) for column in columns.values()}) > 1:
        counts = ", ".join(f"{field} {len(column)}" for field, column in columns.items())
        raise UserError(f"zipped: every field must have equally many values; there are: {counts}")
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def sample(count: int, values: Mapping[str, object], seed: int = 0) -> Iterator[Variant]:
    """`count` variants drawn at random, the same ones for the same seed.

    Args:
        values: by field, a list to choose from, or `uniform`, `log_uniform`, `integers`.
    """
    draw = random.Random(seed)
    for _ in range(count):
        yield {
            field: value(draw) if callable(value) else draw.choice(_listed(field, value))
            for field, value in values.items()
        }


def uniform(low: float, high: float) -> Callable[[random.Random], float]:
    """For `sample`: a number between the two."""
    return lambda draw: draw.uniform(low, high)


def log_uniform(low: float, high: float) -> Callable[[random.Random], float]:
    """For `sample`: a number between the two, every order of magnitude as often as any other."""
    if not 0 < low <= high:
        raise UserError(f"log_uniform({low}, {high}): it must be 0 < low <= high")
    return lambda draw: math.exp(draw.uniform(math.log(low), math.log(high)))


def integers(low: int, high: int) -> Callable[[random.Random], int]:
    """For `sample`: a whole number between the two, both included."""
    return lambda draw: draw.randint(low, high)


def _variants(part: Part) -> list[Variant]:
    if not isinstance(part, Mapping):
        return [dict(variant) for variant in part]
    columns = [_listed(field, values) for field, values in part.items()]
    return [dict(zip(part, row, strict=True)) for row in itertools.product(*columns)]


def _listed(field: str, values: object) -> list:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UserError(f"{field}: {values!r} must be a list of values")
    return list(values)
