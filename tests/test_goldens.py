"""Published recipes on the pods that they are meant for: what must hold of the compiled step.

With --quick: it is the step that `train` runs, divided among the same devices, and the questions
are what fits and what is sent, not how fast the compiler's code is.
"""

import pytest

from tests.tpu_compiler import compile_for_pod, sizes

# Of the state, what may be whole on every device: LayerNorms, biases, nothing that grows.
WHOLE = 2**21


class Golden:
    """A published recipe on a pod, and what must hold of it."""

    def __init__(self, recipe, topology, slices, mesh, stack, dominant, **overrides):
        self.arguments = [f"--config=configs/{recipe}.py", f"--topology={topology}"]
        self.arguments += [f"--slices={slices}", "--quick"]
        self.arguments += [f"--config.{name}={value}" for name, value in overrides.items()]
        self.mesh, self.stack, self.dominant = mesh, stack, dominant


GOLDENS = {
    # Shards of 768 / 16 = 48 numbers: the compiler sums a layer's gradients whole.
    "v3-base on v5e:4x4": Golden(
        "deberta_v3_base", "v5e:4x4", 1, {"fsdp": 16}, 11, ("all-reduce", "ICI"),
        **{"objective": "mlm", "train.batch_size": 512, "mesh.data": 1, "mesh.fsdp": 16},
    ),
    "v1-large on v5p:4x4x4": Golden(
        "deberta_v1_large", "v5p:4x4x4", 1, {"data": 4, "fsdp": 16}, 23, ("all-gather", "ICI"),
        **{"mesh.data": 4, "mesh.fsdp": 16},
    ),
    "v2-xxlarge on v6e:16x16": Golden(
        "deberta_v2_xxlarge", "v6e:16x16", 1, {"data": 16, "fsdp": 16}, 46, ("all-gather", "ICI"),
        **{"mesh.data": 16, "mesh.fsdp": 16},
    ),
    # Likewise, of 1536 / 256 = 6.
    "v2-xxlarge on 2 x v5e:16x16": Golden(
        "deberta_v2_xxlarge", "v5e:16x16", 2, {"data": 2, "fsdp": 256}, 46, ("all-reduce", "ICI")
    ),
}  # fmt: skip


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name, tmp_path):
    golden = GOLDENS[name]
    status, found, output, errors = compile_for_pod(tmp_path / "out.json", *golden.arguments)
    assert status == 0 and found["fits"], f"{output}\n{errors}"
    assert {axis: n for axis, n in found["mesh"].items() if n > 1} == golden.mesh
    assert found["quick"] and found["attention_gathers"] == 0 and found["unknown_loops"] == []
    assert found["largest_replicated_bytes"] <= WHOLE
    # A layer at a time: the scan's axis is nowhere in what is gathered.
    assert golden.stack not in sizes(found["largest_all_gather"]["shape"])
    longest = found["collectives"][0]
    assert (longest["kind"], longest["link"]) == golden.dominant, found["collectives"]
    if found["slices"] > 1:
        crossing = [row for row in found["collectives"] if row["link"] == "DCN"]
        assert {row["kind"] for row in crossing} == {"all-reduce"}  # gradients, nothing else
