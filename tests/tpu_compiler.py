"""Functions of test modules run where libtpu compiles for TPUs that are not there.

A program that has not changed is not compiled again. `recorded` knows what was read from a compiled
program by everything that decides it: the program itself, the compiler's version and settings, and
the code that reads it. Anything else is compiled.

    RECORD_PROGRAMS=1 bash launch/test.sh tests/test_goldens.py tests/kernels

writes the records of what has changed, to be committed with the change.
"""

import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "tests" / "tpu_programs"


def compiled_for_tpu(function, *arguments, schedules=False):
    """What a test module's function returns (JSON) in a process of its own; skips without libtpu.

    libtpu reads its settings once, when it is loaded; `schedules`: as `cost.prepare` has them.
    """
    pytest.importorskip("libtpu")
    code = (
        f"import json; from deberta_jax.estimates import cost; cost.prepare({schedules}); "
        f"from {function.__module__} import {function.__name__} as function; "
        f"print(json.dumps(function(*{arguments!r})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return json.loads(result.stdout.splitlines()[-1])


def compile_for_pod(out, *arguments):
    """(exit status, report, output, errors) of the verb `compile`."""
    pytest.importorskip("libtpu")
    command = [sys.executable, "-m", "deberta_jax.compile", *arguments, f"--json={out}"]
    done = subprocess.run(
        command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=1800
    )
    report = json.loads(out.read_text()) if out.exists() else None
    return done.returncode, report, done.stdout, done.stderr


def recorded(name, lowered, facts, again=False):
    """`facts()` of a program, JSON; from tests/tpu_programs/NAME.json if it is of this very one.

    Args:
        lowered: the program.
        facts: compiles it and says what the test asks.
        again: compile it although there is a record.
    """
    path, key = RECORDS / f"{name}.json", _key(lowered, facts)
    if path.exists() and not again:
        known = json.loads(path.read_text())
        if known["key"] == key:
            return known["facts"]
    made = json.loads(json.dumps(facts()))
    if os.environ.get("RECORD_PROGRAMS"):
        RECORDS.mkdir(exist_ok=True)
        path.write_text(json.dumps({"key": key, "facts": made}, indent=1) + "\n")
    return made


def _key(lowered, facts):
    """Everything that decides what is read from a compiled program."""
    parallel = ROOT / "deberta_jax/parallel"
    readers = [parallel / "chips.py", parallel / "xla_options.py"]
    readers += sorted((ROOT / "deberta_jax/estimates").glob("*.py"))
    parts = [f"{package} {version(package)}" for package in ("jax", "jaxlib", "libtpu")]
    parts += [str(jax.config.jax_optimization_level), "XLA " + os.environ.get("XLA_FLAGS", "")]
    parts.append("schedules" if "dump_llo" in os.environ.get("LIBTPU_INIT_ARGS", "") else "quick")
    parts += [inspect.getsource(facts), *(reader.read_text() for reader in readers)]
    parts.append(lowered.as_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _environment():
    """That of this process, without the flags that spare the tests' CPU code its optimisation.

    A kernel's program holds no lines of Python then: a comment above does not make it another.
    """
    others = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return others | {"JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0"}


def sizes(shape):
    """The axes of a shape as HLO writes it."""
    return [int(n) for n in re.search(r"\[([\d,]+)\]", shape)[1].split(",")]
