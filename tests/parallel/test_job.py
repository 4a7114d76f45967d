"""Two real processes of a job: what they agree on, a damaged checkpoint, and the death of one."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deberta_jax.errors import PassingError

ROOT = Path(__file__).parents[2]


def in_two_processes(workdir):
    """(statuses, outputs) of `one_of_two`, run in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from {__name__} import one_of_two; one_of_two{(str(workdir), address, index)}",
            ],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    return [process.returncode for process in started], outputs


def one_of_two(workdir, address, index):
    """What one process does; it leaves `INDEX.json`."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import NamedSharding, PartitionSpec

    from deberta_jax import locks
    from deberta_jax.parallel import processes
    from deberta_jax.training.checkpoints import Checkpoints

    processes.initialize(f"{address},2,{index}", heartbeat=10, timeout=120)
    found, workdir = {}, Path(workdir)
    found["said"] = processes.agreed("second" if index else "")
    found["number"] = processes.of_first(0.1 + index)
    with processes.alone_in(workdir, "train"):
        found["locked"] = (workdir / locks.FILE).exists()
        try:
            processes.on_first(lambda: locks.held(workdir, "prepare").__enter__())
        except PassingError as error:
            found["refused"] = str(error)

        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        layout = NamedSharding(mesh, PartitionSpec("data"))
        want = {step: np.arange(8, dtype=np.float32) + step for step in (3, 6)}
        state = {
            step: {"x": jax.make_array_from_callback((8,), layout, lambda at, x=x: x[at])}
            for step, x in want.items()
        }
        with Checkpoints(workdir, 5) as checkpoints:
            checkpoints.of_run("ours")
            for step in want:
                checkpoints.save(step, state[step], {"next_step": step}, {})
            assert not checkpoints.problem()
        if index == 0:  # the file that only the other process looks at, or this one
            names = (workdir / "checkpoints" / "6" / "state").rglob("d/*")
            damaged = max(names, key=lambda path: path.stat().st_size)
            data = bytearray(damaged.read_bytes())
            data[len(data) // 2] ^= 4
            damaged.write_bytes(data)
            found["damaged"] = damaged.name
        processes.agreed("damaged")
        with Checkpoints(workdir, 5) as checkpoints:
            found["notes"] = checkpoints.of_run("ours")
            restored = checkpoints.restore(
                {"x": jax.ShapeDtypeStruct((8,), np.float32, sharding=layout)}
            )
        found["step"] = restored.input["next_step"]
        (shard,) = restored.state["x"].addressable_shards
        found["same"] = bool((np.asarray(shard.data) == want[3][shard.index]).all())
    (workdir / f"{index}.json").write_text(json.dumps(found))
    processes.agreed("written")
    if index == 1:
        os._exit(9)
    with processes.ending_at_once():
        while True:
            multihost_utils.process_allgather(np.float32(index))
            time.sleep(0.1)


@pytest.mark.slow
def test_two_processes_agree_and_one_that_is_left_ends(tmp_path):
    begun = time.monotonic()
    statuses, outputs = in_two_processes(tmp_path)
    assert (tmp_path / "1.json").exists(), outputs
    first, second = (json.loads((tmp_path / f"{index}.json").read_text()) for index in range(2))
    assert first["said"] == second["said"] == "second"
    assert first["number"] == second["number"] == 0.1
    assert first["locked"] and second["locked"]
    assert first["refused"] == second["refused"] and "is in use" in first["refused"]
    assert first["step"] == second["step"] == 3 and first["same"] and second["same"]
    assert not (tmp_path / "checkpoints" / "6").exists()
    (note,) = first["notes"]
    assert first["damaged"] in note and (tmp_path / "damaged_checkpoints" / "6").is_dir()
    # The other is gone: one line, and a status that launchers restart.
    assert statuses == [1, 9], outputs
    lines = [line for line in outputs[0].splitlines() if "error:" in line]
    assert len(lines) == 1 and "another process of the job is gone" in lines[0]
    assert time.monotonic() - begun < 240
