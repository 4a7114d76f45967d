"""Compiles the CPU kernels with the machine's own C++ compiler, once, and tells XLA of them."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

SOURCES = ("attention.cc", "head.h", "vectors.h")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math")
FORWARD, BACKWARD = "deberta_forward", "deberta_backward"
_SYMBOLS = {FORWARD: "DebertaForward", BACKWARD: "DebertaBackward"}


@functools.cache
def problem() -> str | None:
    """Builds and registers the kernels; what stands in the way, None where they are ready."""
    try:
        library = ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    for target, symbol in _SYMBOLS.items():
        jax.ffi.register_ffi_target(
            target, jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu"
        )
    return None


def _built() -> Path:
    """The library for this machine and these sources, compiled unless it is there already.

    Raises:
        OSError, subprocess.SubprocessError: there is no compiler, or it failed.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise OSError("there is no C++ compiler (g++, clang++, or what CXX names)")
    folder = Path(__file__).parent
    what = [(folder / name).read_bytes() for name in SOURCES]
    what += [" ".join(FLAGS).encode(), compiler.encode(), _processor().encode()]
    what.append(jax.__version__.encode())
    library = _cache() / f"{hashlib.sha256(bytes(1).join(what)).hexdigest()[:24]}.so"
    if not library.exists():
        logging.getLogger(__name__).info("compiling the CPU kernels into %s", library)
        library.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may start at once: each compiles into a file of its own, moved whole.
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            made = Path(scratch) / "made.so"
            command = [compiler, *FLAGS, "-shared", "-fPIC", "-isystem", jax.ffi.include_dir()]
            done = subprocess.run(
                [*command, str(folder / SOURCES[0]), "-o", str(made)],
                capture_output=True,
                text=True,
                timeout=300,
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
                raise OSError(f"{compiler} failed: {lines[0]}")
            made.replace(library)
    return library


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "deberta_jax"


def _processor() -> str:
    """What `-march=native` means here: the processor's features, where Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
