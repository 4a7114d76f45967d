"""Published recipes on the pods that they are meant for: what must hold of the compiled step.

As `compile --quick` has it: it is the step that `train` runs, divided among the same devices, and
the questions are what fits and what is sent, not how fast the compiler's code is.
"""

import jax
import pytest

from tests.tpu_compiler import compiled_for_tpu, recorded, sizes

# Of the state, what may be whole on every device: LayerNorms, biases, nothing that grows.
WHOLE = 2**21


class Golden:
    """A published recipe on a pod, and what must hold of it."""

    def __init__(self, recipe, topology, slices, mesh, stack, dominant, **overrides):
        self.recipe, self.pod, self.overrides = recipe, (topology, slices), overrides
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


def reports():
    """The report of every golden, by name."""
    from deberta_jax import recipes, schema
    from deberta_jax.runs.compilation import lower_for

    jax.config.update("jax_optimization_level", "O1")
    made = {}
    for name, golden in GOLDENS.items():
        config = recipes.load(golden.recipe)
        config.update_from_flattened_dict(golden.overrides)
        lowered = lower_for(schema.freeze(config), *golden.pod)
        file = "golden " + name.replace(":", " ")
        made[name] = recorded(file, lowered.step, lambda step=lowered: step.compile().to_dict())
    return made


@pytest.fixture(scope="module")
def found():
    return compiled_for_tpu(reports)


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name, found):
    golden, report = GOLDENS[name], found[name]
    assert report["fits"]
    assert {axis: n for axis, n in report["mesh"].items() if n > 1} == golden.mesh
    assert report["quick"] and report["attention_gathers"] == 0 and report["unknown_loops"] == []
    assert report["largest_replicated_bytes"] <= WHOLE
    # A layer at a time: the scan's axis is nowhere in what is gathered.
    assert golden.stack not in sizes(report["largest_all_gather"]["shape"])
    longest = report["collectives"][0]
    assert (longest["kind"], longest["link"]) == golden.dominant, report["collectives"]
    if report["slices"] > 1:
        crossing = [row for row in report["collectives"] if row["link"] == "DCN"]
        assert {row["kind"] for row in crossing} == {"all-reduce"}  # gradients, nothing else
