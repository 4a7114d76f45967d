"""Work in a process of its own that has eight CPU devices: how many is settled at start-up."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

# What the tests run compiles far longer than it computes. Unoptimised code takes half of the time,
# and XLA's older emitter of fused loops, with a codegen of one part, a third of what is left.
UNOPTIMISED = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
EIGHT = {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {UNOPTIMISED}",
    "JAX_PLATFORMS": "cpu",
}


def on_eight_devices(function, *arguments: str) -> None:
    """Calls a function of a test module over there; fails with its traceback."""
    command = [sys.executable, "-m", "tests.devices", function.__module__, function.__name__]
    result = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        env=os.environ | EIGHT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


if __name__ == "__main__":
    module, function, *arguments = sys.argv[1:]
    getattr(importlib.import_module(module), function)(*arguments)
