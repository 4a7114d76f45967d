"""What every test shares: quick compilation, and a fresh seed that a failing test shows."""

import os
import secrets
import shutil
import tempfile

import pytest

# The tests compile far longer than they compute; unoptimised code halves their time. The processes
# that they start inherit it. libtpu, if installed, is for compiling alone.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

# What a test or a run that it starts compiled, the next one need not.
_compiled = tempfile.mkdtemp(prefix="compiled_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


def pytest_unconfigure():
    shutil.rmtree(_compiled, ignore_errors=True)


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
