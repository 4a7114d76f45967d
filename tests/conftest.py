"""What every test shares: quick compilation, and a fresh seed that a failing test shows."""

import os
import secrets

import pytest

# The tests compile far longer than they compute; unoptimised code halves their time. The processes
# that they start inherit it. libtpu, if installed, is for compiling alone.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"


@pytest.fixture
def seed():
    value = secrets.randbelow(2**31)
    print(f"seed = {value}")
    return value


def pytest_collection_modifyitems(items):
    """The files that take longest come first: no process is left alone with one at the end."""
    minutes = dict.fromkeys((item.path for item in items), 0)
    for item in items:
        if mark := item.get_closest_marker("slow"):
            minutes[item.path] += mark.kwargs.get("minutes", 1)
    items.sort(key=lambda item: -minutes[item.path])
