"""Texts that readers trip over, for tests that draw them."""

import csv
import io

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

fuzz = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
# What readers of text trip over: every kind of line end and blank, marks, quotes, half an emoji.
HOSTILE = "\u2028\u2029\x85\u00a0\u3000\x0b\x0c\x1c\x1d\x1e\x00\r\n\t ,;|+=\"'\\#\ufeff\u200b😀é"
HALVES = "\ud83d\ude00"
characters = st.characters(exclude_categories=["Cs"]) | st.sampled_from(HOSTILE)
texts = st.text(characters, max_size=12)


def written(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def as_written(header, rows, **dialect):
    stream = io.StringIO(newline="")
    csv.writer(stream, **dialect).writerows([header, *rows])
    return stream.getvalue()
