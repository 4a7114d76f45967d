"""What every test shares: quick compilation, and a fresh seed that a failing test shows."""

import hashlib
import os
import platform
import secrets
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.devices import UNOPTIMISED

ROOT = Path(__file__).parents[1]
DAY = 24 * 3600


def _machine() -> str:
    """The processor: another one cannot run code that was compiled for this one."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    named = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    text = "".join([platform.machine(), *sorted(set(named))])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# The processes that the tests start inherit it. libtpu, if installed, is for compiling alone.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {UNOPTIMISED}"

# What a test or a run that it starts compiled, no other process of this or a later session need
# compile again. JAX's key is the program, the flags and the version; an entry that was written
# halfway is a warning, and compiled anew.
COMPILED = ROOT / ".cache" / f"compiled-jax{version('jax')}-{version('jaxlib')}-{_machine()}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


def pytest_sessionstart(session):
    """Entries of three days ago go: a program that still exists is compiled again then."""
    if not hasattr(session.config, "workerinput") and COMPILED.exists():
        for entry in COMPILED.iterdir():
            if entry.stat().st_mtime < time.time() - 3 * DAY:
                entry.unlink(missing_ok=True)


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
