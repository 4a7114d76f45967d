"""Several real processes train as one: the same losses, checkpoints for any mesh, told to stop."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.devices import EIGHT, UNOPTIMISED

ROOT = Path(__file__).parents[1]
STEPS, MORE = 50, 60
# float32, dropout on. A constant learning rate, so that a run may be made longer; a low one, or
# what float32 rounds away grows tenfold every few steps.
RUN = (
    "--config=tests/tiny_recipe.py",
    "--config.train.eval_every=0",
    "--config.train.checkpoint_every=0",
    "--config.optimizer.learning_rate=2e-3",
    "--config.optimizer.warmup=5 steps",
    "--config.optimizer.final_share=1.0",
)


def mesh(data, fsdp, tensor):
    sizes = dict(data=data, fsdp=fsdp, tensor=tensor)
    return [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]


def start(command, **environment):
    environment = {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable} | environment
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, **pipes)


def finish(process):
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


def train(workdir, data, steps, *options, **environment):
    arguments = [*RUN, f"--workdir={workdir}", f"--config.data.dir={data}"]
    arguments += [f"--config.train.duration={steps} steps", *options]
    status, output = finish(
        start([sys.executable, "-m", "deberta_jax.train", *arguments], **environment)
    )
    assert status == 0, output
    return output


def launch(processes, workdir, data, steps, *options, devices):
    command = ["bash", "launch/multiprocess.sh", processes, "train", *RUN, f"--workdir={workdir}"]
    command += [f"--config.data.dir={data}", f"--config.train.duration={steps} steps", *options]
    environment = {"DEVICES": str(devices), "LOGS": str(workdir.parent)}
    return start([str(word) for word in command], **environment)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))  # one writer
    return [line["train/loss"] for line in lines]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny") / "data"
    command = [
        sys.executable,
        "-m",
        "deberta_jax.prepare",
        RUN[0],
        f"--config.data.dir={directory}",
    ]
    status, output = finish(start([*command, f"--workdir={directory.parent}"]))
    assert status == 0, output
    return directory


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """The losses of one process with one device."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    train(workdir, data, MORE, XLA_FLAGS=UNOPTIMISED)
    found = losses(workdir)
    assert len(found) == MORE and found[-1] < found[0] - 0.2
    return found


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """Two processes with four devices each, told to stop on the way: (workdir, first output)."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    process, output = launch(2, workdir, data, STEPS, *mesh(2, 2, 2), devices=4), ""
    for line in process.stdout:
        output += line
        if re.match(r"step +5/", line):
            process.send_signal(signal.SIGTERM)
            break
    status, rest = finish(process)
    assert status == 143, output + rest
    again = finish(launch(2, workdir, data, STEPS, *mesh(2, 2, 2), devices=4))
    assert again[0] == 0, again[1]
    return workdir, output + rest


@pytest.mark.slow
def test_two_processes_told_to_stop_save_at_one_step_and_go_on(two, one):
    workdir, output = two
    (step,) = re.findall(r"stopped after step (\d+); the same command goes on from there", output)
    assert 5 <= int(step) < STEPS
    found = losses(workdir)
    assert len(found) == STEPS
    np.testing.assert_allclose(found, one[:STEPS], rtol=1e-5)


@pytest.mark.slow
def test_four_processes_that_share_rows_make_the_losses_of_one(data, one, tmp_path):
    """The heads' axis spans two processes, which then hold the same rows."""
    workdir = tmp_path / "run"
    status, output = finish(launch(4, workdir, data, STEPS, *mesh(2, 1, 4), devices=2))
    assert status == 0, output
    np.testing.assert_allclose(losses(workdir), one[:STEPS], rtol=1e-5)
    written = {path.name for path in (workdir / f"checkpoints/{STEPS}/state").iterdir()}
    assert {f"ocdbt.process_{index}" for index in range(4)} <= written  # by all of them


@pytest.mark.slow
def test_two_processes_draw_and_learn_what_one_does(data, tmp_path):
    """Replaced-token detection: each draws for its own rows, and the tokens are the same."""
    steps, objective = 8, "--config.objective=rtd"
    train(tmp_path / "one", data, steps, objective, XLA_FLAGS=UNOPTIMISED)
    workdir = tmp_path / "two"
    status, output = finish(launch(2, workdir, data, steps, objective, *mesh(2, 1, 1), devices=1))
    assert status == 0, output
    ours, want = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (workdir, tmp_path / "one")
    )
    for line, of_one in zip(ours, want, strict=True):
        for name in line:
            if name.startswith(("train/", "eval/")):
                np.testing.assert_allclose(line[name], of_one[name], rtol=1e-4, err_msg=name)


@pytest.mark.slow
def test_a_checkpoint_moves_between_process_counts_and_meshes(two, one, data, tmp_path):
    workdir = two[0]
    # From 2 x 2 x 2 in two processes to 8 x 1 in one: it goes on as if nothing had changed.
    output = train(workdir, data, MORE, *mesh(8, 1, 1), **EIGHT)
    assert f"going on after step {STEPS}" in output
    np.testing.assert_allclose(losses(workdir), one, rtol=1e-5)
    # And back: every parameter and moment, bit for bit.
    restored_in_processes(workdir, tmp_path / "two.npz", 2, 4, (2, 2, 2))
    restored_in_processes(workdir, tmp_path / "one.npz", 1, 8, (8, 1, 1))
    ours, want = np.load(tmp_path / "two.npz"), np.load(tmp_path / "one.npz")
    assert set(ours) == set(want) and len(want) > 60
    for name in want:
        np.testing.assert_array_equal(ours[name], want[name], err_msg=name)


def restored_in_processes(workdir, out, processes, devices, sizes):
    """Writes the state of the last checkpoint as these processes, on this mesh, restore it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    code = f"from {__name__} import write_restored; write_restored"
    started = [
        start(
            [
                sys.executable,
                "-c",
                f"{code}{(str(workdir), str(out), sizes, address, processes, i)}",
            ],
            **flags,
        )
        for i in range(processes)
    ]
    for process in started:
        status, output = finish(process)
        assert status == 0, output


def write_restored(workdir, out, sizes, address, processes, index):
    """In one of the processes."""
    if processes > 1:
        jax.distributed.initialize(address, processes, index)
    import dataclasses

    from jax.experimental import multihost_utils

    from deberta_jax import objectives, schema
    from deberta_jax.parallel.mesh import MeshConfig
    from deberta_jax.parallel.sharding import local_rows
    from deberta_jax.training.checkpoints import Checkpoints
    from deberta_jax.training.program import make_program
    from deberta_jax.training.step_units import StepUnits

    config = schema.load(Path(workdir) / "config.json")
    config = dataclasses.replace(config, mesh=MeshConfig(*sizes))
    program = make_program(config, objectives.make(config, None), StepUnits(1.0, 1.0, MORE))
    assert sum(map(len, local_rows(8, program.mesh))) == 8 // processes
    with Checkpoints(Path(workdir), read_only=True) as checkpoints:
        state = checkpoints.restore(program.abstract).state
    table = state.params["embeddings"]["word_embeddings"]["embedding"]
    assert not table.sharding.is_fully_replicated
    if processes > 1:
        state = multihost_utils.process_allgather(state, tiled=True)
    arrays = {
        jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(state)
    }
    if index == 0:
        np.savez(out, **arrays)


def test_processes_that_do_not_meet_are_one_line_and_may_be_tried_again(tmp_path):
    command = [sys.executable, "-m", "deberta_jax.train", *RUN, f"--workdir={tmp_path}"]
    status, output = finish(start([*command, "--distributed=auto"]))
    (line,) = output.splitlines()
    assert status == 1 and line.startswith("error: --distributed=auto: the processes"), output
