"""The verb compile: what a pod would need and take, asked of the TPU compiler itself."""

import dataclasses
import math
import re
import subprocess
from pathlib import Path

import pytest

from deberta_jax import schema
from deberta_jax.errors import UserError
from deberta_jax.parallel import chips, layout
from deberta_jax.parallel.mesh import MeshConfig
from tests.tpu_compiler import compile_for_pod, compiled_for_tpu, sizes

ROOT = Path(__file__).parents[1]
SMALL = ("--config=configs/quickstart.py", "--config.compute.dtype=bfloat16")
# The JSON has at least these.
KEYS = {
    "fits",
    "hbm_bytes",
    "hbm_limit_bytes",
    "model_flops_per_token",
    "collectives",
    "attention_gathers",
    "estimated_step_seconds",
    "estimated_tokens_per_second_per_chip",
    "estimated_mfu",
}


def test_a_small_run_fits_and_everything_is_reported(tmp_path):
    status, found, output, errors = compile_for_pod(
        tmp_path / "out.json", *SMALL, "--topology=v5e:2x2"
    )
    assert status == 0, errors
    assert found.keys() >= KEYS
    assert found["fits"] and 0 < found["hbm_bytes"] < found["hbm_limit_bytes"]
    assert found["attention_gathers"] == 0 and found["unknown_loops"] == []
    tokens = 16 * 128 / found["estimated_step_seconds"] / 4
    assert found["estimated_tokens_per_second_per_chip"] == pytest.approx(tokens)
    mfu = tokens * found["model_flops_per_token"] / 197e12
    assert found["estimated_mfu"] == pytest.approx(mfu) and 0 < mfu < 1
    days = 1500 * found["estimated_step_seconds"] / 86400
    assert found["estimated_chip_hours"] == pytest.approx(days * 24 * 4)
    # Every gradient is summed; the vocabulary is split though the mesh only copies the model.
    assert {row["kind"] for row in found["collectives"]} >= {"all-reduce", "all-gather"}
    assert all(row["link"] == "ICI" and row["group"] == 4 for row in found["collectives"])
    gathered = found["largest_all_gather"]
    assert math.prod(sizes(gathered["shape"])) == 6016 * 128
    assert found["largest_replicated_bytes"] < 6016 * 128 * 4
    for said in ("fits", "tokens/s a chip", "MFU", "chip-hours", "nothing was run"):
        assert said in output


def test_a_run_that_does_not_fit_says_by_how_much_and_what_would(tmp_path):
    status, found, _, errors = compile_for_pod(
        tmp_path / "out.json",
        *SMALL,
        "--topology=v5e:2x2",
        "--config.train.batch_size=65536",
    )
    assert status == 1, errors
    assert found["fits"] is False and found["hbm_bytes"] > found["hbm_limit_bytes"]
    said = errors.splitlines()[-1]
    excess = (found["hbm_bytes"] - found["hbm_limit_bytes"]) / 2**30
    assert f"does not fit by {excess:,.2f} GiB" in said
    assert "remat" in said and re.search(r"train\.microbatches=\d+", said)


def slices_and_mistakes():
    """The slice of every device of three meshes over two slices, and what mistakes there say."""
    import numpy as np

    from deberta_jax.configs import quickstart
    from deberta_jax.estimates.cost import tpu_devices
    from deberta_jax.parallel.mesh import make_mesh, slice_of
    from deberta_jax.runs import compilation

    base = schema.freeze(quickstart.get_config())

    def said(**sections):
        replaced = {
            name: dataclasses.replace(getattr(base, name), **fields)
            for name, fields in sections.items()
        }
        try:
            compilation.compile_step(dataclasses.replace(base, **replaced), "v5e:2x2", 2)
        except UserError as error:
            return str(error)

    def layout(topology, **axes):
        mesh = make_mesh(MeshConfig(data=2, fsdp=2, **axes), tpu_devices(topology, 2))
        return np.vectorize(slice_of)(mesh.devices).tolist()

    layouts = layout("v5e:2x2"), layout("v5e:2x2", dcn_data=1, dcn_fsdp=2), layout("v4:2x2x1")
    return layouts, [
        said(mesh={"data": 3}),
        said(mesh={"data": 8}),
        said(mesh={"dcn_data": 3}),
        said(train={"batch_size": 12}),
        said(train={"duration": "2 epochs"}),
    ]


@pytest.fixture(scope="module")
def slices():
    return compiled_for_tpu(slices_and_mistakes)


def test_slices_come_first_in_the_axis_that_joins_them(slices):
    copies, split, cubes = slices[0]
    assert copies == cubes == [[[0], [0]], [[0], [0]], [[1], [1]], [[1], [1]]]
    assert split == [[[0], [0], [1], [1]], [[0], [0], [1], [1]]]


def test_mistakes_are_one_line_each(slices):
    data, whole, dcn, batch, epochs = slices[1]
    assert "mesh.data=3" in data and "does not fit 4 device(s) a slice" in data
    assert "mesh.data=8" in whole and "multiply to 4" in whole
    assert "mesh.dcn_data=3" in dcn and "does not fit 2 slice(s)" in dcn
    assert "train.batch_size 12 does not divide" in batch and "multiple of 8" in batch
    assert "train.duration is '2 epochs'" in epochs


@pytest.mark.parametrize("name", ["v5e:3x5", "v5e", "v9:2x2", "v5p:16x16"])
def test_an_unknown_topology_lists_the_valid_ones(name):
    with pytest.raises(UserError, match="it must be one of") as caught:
        chips.check_topology(name)
    known = str(caught.value).partition("one of ")[2].split(", ")
    assert all(chips.check_topology(one) for one in known)
    assert ("v5p:4x4x4" in known) == (not name.startswith("v5e"))


def test_the_launchers_know_the_same_topologies():
    script = "source launch/tpu_types.sh; for g in ${GENERATIONS[@]}; do "
    script += "echo $g ${TOPOLOGIES[$g]}; done"
    lines = subprocess.check_output(["bash", "-c", script], cwd=ROOT, text=True).splitlines()
    theirs = {line.split()[0]: tuple(line.split()[1:]) for line in lines}
    assert theirs == {chip.name: chip.topologies for chip in chips.CHIPS.values()}


def test_meshes_to_compare():
    from deberta_jax.runs.compilation import meshes

    found = [one.mesh for one in meshes(schema.Config(), "data=4,fsdp=4;fsdp=16,dcn_data=2")]
    assert found == [MeshConfig(4, 4, 1, -1, 1), MeshConfig(1, 16, 1, 2, 1)]
    with pytest.raises(UserError, match="'pipeline=2' is not AXIS=SIZE; axes are data, fsdp"):
        meshes(schema.Config(), "data=4,pipeline=2")


def test_meshes_are_compared_side_by_side(tmp_path):
    status, found, output, errors = compile_for_pod(
        tmp_path / "out.json", *SMALL, "--topology=v5e:2x2", "--quick", "--compare=data=4;fsdp=4"
    )
    assert status == 0, errors
    head, *rows = output.splitlines()
    assert head.startswith("mesh") and [row[:6] for row in rows] == ["data 4", "fsdp 4"]
    copied, split = found
    assert copied["parameter_bytes"] > split["parameter_bytes"]
    for one, row in zip(found, rows, strict=True):
        memory = row.split()[row.split().index("yes") - 1]
        assert memory == f"{one['hbm_bytes'] / 2**30:.2f}"
        # Quick: what fits and what is sent, no times.
        assert one["quick"] and one["collectives"] and "estimated_step_seconds" not in one


@pytest.mark.parametrize(
    ("mesh", "shape", "want"),
    [
        ((1, 16, 1), (128_100, 768), ((), ("fsdp",))),
        ((16, 1, 1), (128_100, 768), ((), ("data",))),
        ((1, 1, 16), (128_100, 768), ((), ("tensor",))),
        ((2, 2, 4), (128_100, 768), (("tensor",), ("fsdp",))),
        ((1, 256, 1), (128_100, 1536), ((), ("fsdp",))),
        ((4, 256, 1), (50_304, 1024), ((), ("fsdp",))),
        ((1, 1, 1), (128_100, 768), ((), ())),
    ],
)
def test_every_mesh_splits_the_vocabulary(mesh, shape, want):
    from jax.sharding import AbstractMesh

    from deberta_jax.model.layers import VOCABULARY_TABLE
    from deberta_jax.parallel.mesh import AXES
    from deberta_jax.parallel.sharding import RULES

    assert layout.splitting_axes(VOCABULARY_TABLE, shape, RULES, AbstractMesh(mesh, AXES)) == want
