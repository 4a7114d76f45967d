"""Functions of test modules run where libtpu compiles for TPUs that are not there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
        timeout=600,
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


def _environment():
    """That of this process, without the flags that spare the tests' CPU code its optimisation."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def sizes(shape):
    """The axes of a shape as HLO writes it."""
    return [int(n) for n in re.search(r"\[([\d,]+)\]", shape)[1].split(",")]
