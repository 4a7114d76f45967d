"""What reaches `deberta_jax.train` in the end, through every layer of quoting."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.launch.scripts import LAUNCH, ROOT, Notes, commands, launch, option, printed


def read(notes) -> list[str]:
    """The words of the only command noted: bash wrote them, bash reads them."""
    script = f"printf '%s\\n' {notes.taken()}"
    return subprocess.check_output(["bash", "-c", script], text=True).splitlines()


def test_tpu_host(job):
    """The words that ssh carries mean the same in the host's shell."""
    arguments = [*job.located, "--tpu=v5e:4x4", "--slices=2", *job.training]
    (ssh,) = commands(printed("tpu_vm.sh", "train", *arguments))
    shell, script, *words = shlex.split(option(ssh, "command"))
    assert (shell, script) == ("bash", "deberta_jax/launch/tpu_host.sh")
    stop, start = commands(printed("tpu_host.sh", *words))
    assert "systemctl stop" in stop[-1]
    assert start[:2] == ["sudo", "systemd-run"]
    python = start.index(f"{ROOT}/.venv/bin/python")
    assert start[python + 1 :] == job.train
    assert option(start[:python], "setenv=JAX_COMPILATION_CACHE_DIR") == job.cache
    flags = option(start[:python], "setenv=LIBTPU_INIT_ARGS")
    assert f'"{flags} ' in launch("xla_flags.sh", "v5e", "2").stdout


def test_xpk(mounted):
    job = mounted
    arguments = [*job.named, "--xpk", "--cluster=c", "--zone=z", f"--image={job.image}"]
    (create,) = commands(printed("gke.sh", "create", *arguments, "--tpu=v5p:4x4x8", *job.training))
    assert shlex.split(option(create, "command")) == ["exec", "python", *job.train]
    assert option(create, "tpu-type") == "v5p-256"
    assert option(create, "storage") == job.bucket
    assert f"--env=JAX_COMPILATION_CACHE_DIR={job.cache}" in create


def test_xpk_in_a_bucket(job):
    arguments = [*job.named, "--xpk", "--cluster=c", "--zone=z", f"--image={job.image}"]
    (create,) = commands(printed("gke.sh", "create", *arguments, "--tpu=v5p:4x4x8", *job.training))
    assert shlex.split(option(create, "command")) == ["exec", "python", *job.train]
    assert not any(word.startswith("--storage") for word in create)
    assert f"--env=JAX_COMPILATION_CACHE_DIR={job.cache}" in create


@pytest.mark.parametrize("machines", [["--tpu=v6e:4x4"], ["--gpus=H100:8", "--nodes=2"]])
def test_sky(job, tmp_path, machines):
    """Runs the job's own script, with a Python that takes notes."""
    (command,) = commands(printed("sky.sh", "launch", *job.named, *machines, *job.training))
    settings = dict(
        word.removeprefix("--env=").split("=", 1) for word in command if word.startswith("--env=")
    )
    assert settings["CACHE"] == job.cache
    notes = Notes(tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(notes.tools / "python", tmp_path / ".venv/bin/python")
    (tmp_path / "launch").symlink_to(LAUNCH)
    script = yaml.safe_load((LAUNCH / "sky.yaml").read_text())["run"]
    nodes = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    environment = os.environ | notes.environment | nodes | settings
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, stdin=-3, check=True)
    how = "auto" if "--tpu" in machines[0] else "10.0.0.1:8476,2,1"
    expected = [word.replace("=auto", f"={how}") for word in job.train]
    assert read(notes) == ["python", *expected]


def test_slurm(job, tmp_path):
    """The job as sbatch starts it: a copy of the script elsewhere, in the checkout."""
    logs = f"{tmp_path}/logs"
    options = ["--nodes=2", "--gpus-per-node=4", f"--workdir={job.workdir}", f"--logs={logs}"]
    own = {"JAX_COMPILATION_CACHE_DIR": ""}  # else a cache of the user's own is kept
    text = printed("slurm.sh", *options, f"--config={job.config}", job.override, **own)
    mkdir, sbatch, export, srun = commands(text.replace("# in the job: ", ""))
    assert mkdir[0] == "mkdir" and sbatch[0] == "sbatch"
    assert mkdir[-1] == logs and option(sbatch[:-5], "output").startswith(logs)
    assert option(sbatch, "ntasks-per-node") == option(sbatch[:-5], "gpus-per-node") == "4"
    script = sbatch.index(str(LAUNCH / "slurm.sh"))
    shutil.copy(sbatch[script], tmp_path / "slurm_script")
    notes = Notes(tmp_path)
    environment = os.environ | notes.environment | own
    environment |= {"SLURM_JOB_ID": "7", "XLA_FLAGS": "--own"}
    subprocess.run(
        ["bash", tmp_path / "slurm_script", *sbatch[script + 1 :]],
        cwd=option(sbatch, "chdir"),
        env=environment,
        stdin=-3,
        check=True,
    )
    assert read(notes) == srun
    assert srun[-len(job.train) :] == job.train
    assert export[0] == "export" and "latency_hiding" in export[1]
    assert export[2] == f"JAX_COMPILATION_CACHE_DIR={job.cache}"


def test_train_knows_the_flags(job):
    """Every word is parsed before the processes look for one another, which fails here."""
    train = [*job.train[:-1], "--config.train.batch_size=64"]
    done = subprocess.run(
        [sys.executable, *train], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "--distributed=auto" in done.stderr and "no flag" not in done.stderr, done.stderr
