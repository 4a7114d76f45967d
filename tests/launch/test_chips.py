"""The TPU types and the compiler flags, as libtpu and XLA themselves know them."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.launch.scripts import LAUNCH, launch

GENERATIONS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
DEVICES = {"v4": 1, "v5e": 1, "v5p": 1, "v6e": 1, "tpu7x": 2}  # of a chip
TOPOLOGIES = """
from deberta_jax.estimates.cost import prepare, tpu_devices
prepare(schedules=False)
for name in {}:
    devices = tpu_devices(name)
    print("FOUND", name, len(devices), len({{device.process_index for device in devices}}))
"""
with_libtpu = pytest.mark.skipif(not find_spec("libtpu"), reason="libtpu is not installed")


def flags(*arguments) -> dict[str, str]:
    """The environment variable that `xla_flags.sh` exports, in an environment that has flags."""
    (export,) = launch("xla_flags.sh", *arguments).stdout.splitlines()
    name = export.split("=")[0].removeprefix("export ")
    environment = os.environ | {name: "--own"}
    value = subprocess.check_output(
        ["bash", "-c", f'{export}; echo "${name}"'], env=environment, text=True
    ).strip()
    assert value.endswith(" --own")
    return {name: value.removesuffix(" --own")}


def python(code, **environment):
    environment = os.environ | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )


def types(*tpus) -> list[dict[str, str]]:
    """What `read_tpu` makes of each."""
    words = (
        "$CHIPS $HOSTS $ACCELERATOR_TYPE ${RUNTIME[$GENERATION]} ${GKE_ACCELERATOR[$GENERATION]}"
    )
    script = f'source {LAUNCH}/common.sh; source {LAUNCH}/tpu_types.sh; for t in "$@"; do '
    script += f'read_tpu "$t"; echo "{words}"; done'
    lines = subprocess.check_output(["bash", "-c", script, "-", *tpus], text=True).splitlines()
    return [line.split() for line in lines]


@with_libtpu
@pytest.mark.parametrize("generation", GENERATIONS)
def test_topologies(generation):
    """libtpu makes each, with all the flags for it, of as many hosts as the launchers."""
    script = f'source {LAUNCH}/tpu_types.sh; echo "${{TOPOLOGIES[{generation}]}}"'
    shapes = subprocess.check_output(["bash", "-c", script], text=True).split()
    tpus = [f"{generation}:{shape}" for shape in shapes]
    done = python(TOPOLOGIES.format(tpus), **flags(generation, "2"))
    assert done.returncode == 0, done.stderr[-500:]
    printed = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert printed == [
        f"FOUND {tpu} {int(chips) * DEVICES[generation]} {hosts}"
        for tpu, (chips, hosts, *_) in zip(tpus, types(*tpus), strict=True)
    ]


@with_libtpu
def test_libtpu_refuses_a_flag_that_it_does_not_know():
    known = flags("v5e", "2")["LIBTPU_INIT_ARGS"]
    unknown = known.replace("xla_enable_async_all_gather", "xla_enable_asink_all_gather")
    done = python(TOPOLOGIES.format(["v5e:2x2"]), LIBTPU_INIT_ARGS=unknown)
    assert done.returncode != 0 and "asink" in done.stderr + done.stdout


def test_gpu_flags():
    """XLA parses the GPU's flags wherever it runs, and dies of one that it does not know."""
    known = flags("gpu")["XLA_FLAGS"]
    assert python("import jax; jax.devices()", XLA_FLAGS=known).returncode == 0
    unknown = known.replace("latency_hiding", "latency_biding")
    assert "latency_biding" in python("import jax; jax.devices()", XLA_FLAGS=unknown).stderr


def test_one_slice_needs_no_flags_between_slices():
    (one,), (two,) = (flags("v6e", slices).values() for slices in "12")
    assert two.startswith(one) and "data_parallel" in two and "data_parallel" not in one


def test_accelerator_types():
    """cloud.google.com/tpu/docs: v4, v5p and tpu7x count TensorCores, v5e and v6e chips."""
    known = {
        "v4:4x4x4": ["64", "16", "v4-128", "tpu-ubuntu2204-base", "tpu-v4-podslice"],
        "v5e:16x16": ["256", "64", "v5litepod-256", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice"],
        "v5p:2x2x1": ["4", "1", "v5p-8", "v2-alpha-tpuv5", "tpu-v5p-slice"],
        "v6e:1x1": ["1", "1", "v6e-1", "v2-alpha-tpuv6e", "tpu-v6e-slice"],
        "tpu7x:4x4x8": ["128", "32", "tpu7x-256", "v2-alpha-tpu7-ubuntu2404", "tpu7x"],
    }
    assert dict(zip(known, types(*known), strict=True)) == known
