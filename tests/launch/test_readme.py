"""launch/README.md: every launcher is in it, its table adds up. tests/docs runs its commands."""

import importlib
import math
import re

import pytest

from tests.launch.scripts import LAUNCH, ROOT, commands, option, printed

TEXT = (LAUNCH / "README.md").read_text()
ROWS = re.findall(r"^\| `(\S+)` \| (\d+) \| `(\S+)` \| ([^|]+) \| (\d+) \| (\d+) \|$", TEXT, re.M)


def test_every_program_is_mentioned():
    for path in LAUNCH.glob("*.sh"):
        if path.read_text().startswith("#!") and path.name not in ("test.sh", "tpu_host.sh"):
            assert f"{path.name}" in TEXT


def test_there_is_a_row_for_every_generation():
    generations = re.search(r"^GENERATIONS=\((.+)\)$", (LAUNCH / "tpu_types.sh").read_text(), re.M)
    assert {row[0].split(":")[0] for row in ROWS} == set(generations[1].split())


@pytest.mark.parametrize(("tpu", "slices", "recipe", "mesh", "a_chip", "in_all"), ROWS)
def test_row(tpu, slices, recipe, mesh, a_chip, in_all):
    arguments = ["create", "--name=a", "--zone=z", f"--tpu={tpu}", f"--slices={slices}"]
    (create,) = commands(printed("tpu_vm.sh", *arguments))
    generation, topology = tpu.split(":")
    assert option(create, "accelerator-type").endswith(topology_size(generation, topology))
    chips = math.prod(map(int, topology.split("x"))) * int(slices)
    assert chips * int(a_chip) == int(in_all)
    devices = chips * (2 if generation == "tpu7x" else 1)
    assert math.prod(int(axis.split("=")[1]) for axis in mesh.split(", ")) == devices
    assert (ROOT / recipe).exists()
    module = importlib.import_module(recipe.removesuffix(".py").replace("/", "."))
    assert module.get_config().train.batch_size == int(in_all)


def topology_size(generation, topology) -> str:
    chips = math.prod(map(int, topology.split("x")))
    return f"-{chips if generation in ('v5e', 'v6e') else 2 * chips}"
