"""A sweep handed to a scheduler: every run's own arguments reach `deberta_jax.train`."""

import os
import random
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from etils import epath

from deberta_jax.errors import UserError
from deberta_jax.schema import freeze
from deberta_jax.sweeps.handover import hand_over, job_name, read_launch
from deberta_jax.sweeps.variants import command_line
from tests.launch.scripts import LAUNCH, Notes, commands, option
from tests.sweeps.files import parsed, read

SWEEP = "configs/sweeps/ablation.py:tiny"
GKE = "gke.sh create --tpu=v5e:4x4 --image=i --bucket=b"


@pytest.fixture
def sweep(seed):
    return some_runs(seed, Path("/gcs/sweeps/w"))


def some_runs(seed, workdir, *overrides):
    """(runs, what gives a run's arguments); a corpus whose name has to arrive as it is."""
    corpus = f"""/gcs/{random.Random(seed).randrange(99)} it's "$HOME"/*.jsonl"""
    file, runs, given = read(SWEEP, workdir, f"--config.data.corpus={corpus}", *overrides)
    return random.Random(seed).sample(runs, 3), lambda run: command_line(run, file, given)


def handed(launch, sweep, capfd, workdir) -> str:
    runs, arguments = sweep
    hand_over(read_launch(f"{launch} --dry-run"), runs, "abl", workdir, arguments)
    return capfd.readouterr().out


def trained(words):
    """The config, and the workdir, that a command's words give `deberta_jax.train`."""
    words = [word for word in words if not word.startswith("--distributed")]
    values = parsed(words[words.index("deberta_jax.train") + 1 :])
    return freeze(values.config), values.workdir


def wanted(sweep):
    return [(run.config, str(run.workdir)) for run in sweep[0]]


def test_gke_gets_a_jobset_a_run(sweep, capfd, tmp_path):
    text = handed(GKE, sweep, capfd, tmp_path)
    manifests = [part.split("\n", 1)[1] for part in text.split("EOF\n") if "kubectl" in part]
    jobs = [yaml.safe_load(manifest) for manifest in manifests]
    containers = [
        job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
        for job in jobs
    ]
    assert [trained(container["args"]) for container in containers] == wanted(sweep)
    names = [job["metadata"]["name"] for job in jobs]
    assert names == [job_name("abl", run.name) for run in sweep[0]]


def test_xpk_gets_a_workload_a_run(sweep, capfd, tmp_path):
    text = handed(f"{GKE} --xpk --cluster=c --zone=z", sweep, capfd, tmp_path)
    found = [trained(shlex.split(option(words, "command"))) for words in commands(text)]
    assert found == wanted(sweep)


def test_sky_gets_a_job_a_run_and_none_waits_for_another(seed, capfd, tmp_path):
    sweep = some_runs(seed, epath.Path("gs://b/sweeps/w"), "--config.data.dir=/gcs/data")
    text = handed("launch/sky.sh launch --tpu=v6e:4x4", sweep, capfd, tmp_path)
    found = []
    for words in commands(text):
        assert "--detach-run" in words
        given = dict(word[6:].split("=", 1) for word in words if word.startswith("--env="))
        line = ["deberta_jax.train", f"--config={given['CONFIG']}", f"--workdir={given['WORKDIR']}"]
        found.append(trained([*line, *shlex.split(given["OVERRIDES"])]))
    assert found == wanted(sweep)


def test_slurm_gets_an_array_with_a_task_a_run(sweep, tmp_path, capfd):
    """Each task as sbatch starts it: a copy of the script elsewhere, in the checkout."""
    runs, arguments = sweep
    launch = "slurm.sh --gpus-per-node=4 --at-once=2"
    text = handed(launch, sweep, capfd, tmp_path / "w")
    assert not (tmp_path / "w").exists()
    in_jobs = [line for line in text.splitlines() if " srun " in line]
    planned = [trained(shlex.split(line.removeprefix("# in the job: "))) for line in in_jobs]
    assert planned == wanted(sweep)

    notes = Notes(tmp_path)
    environment = notes.environment | {"PYTHON": "python"}
    before = os.environ.copy()
    os.environ.update(environment)
    try:
        hand_over(read_launch(launch), runs, "abl", tmp_path / "w", arguments)
        (sbatch,) = commands(notes.taken())
        assert option(sbatch, "array") == f"1-{len(runs)}%2"
        script = sbatch.index(str(LAUNCH / "slurm.sh"))
        copy = tmp_path / "slurm_script"
        copy.write_text((LAUNCH / "slurm.sh").read_text())
        for task, want in enumerate(wanted(sweep), 1):
            subprocess.run(
                ["bash", copy, *sbatch[script + 1 :]],
                cwd=option(sbatch, "chdir"),
                env=os.environ | {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task)},
                stdin=subprocess.DEVNULL,
                check=True,
            )
            noted = f"printf '%s\\n' {notes.taken()}"
            words = subprocess.check_output(["bash", "-c", noted], text=True).splitlines()
            assert trained(words) == want
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_every_name_is_one_that_schedulers_take_and_is_the_run_s_own(seed):
    draw = random.Random(seed)
    runs = {
        "learning_rate=" + "".join(draw.choices("0123456789.e-+,_", k=60)) for _ in range(50)
    } | {"A", "7", "rate=1e-05", "rate=1e+05"}
    names = {job_name("v2_Ladder", run) for run in runs}
    assert len(names) == len(runs)
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name) for name in names), names
    assert job_name("7", "x")[0].isalpha()


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ("tpu_vm.sh launch", r"must begin with one of gke\.sh, sky\.sh, slurm\.sh"),
        ("gke.sh 'create", r"must begin with one of"),
        ("gke.sh delete", r"gke\.sh begins a run by 'gke\.sh create'"),
        (f"{GKE} --workdir=/gcs/x", r"--workdir is the sweep's own to give"),
        ("slurm.sh --config.seed=3", r"--config\.seed is the sweep's own to give"),
    ],
)
def test_a_mistake_is_one_clear_line(launch, message):
    with pytest.raises(UserError, match=message):
        read_launch(launch)


def test_a_launcher_s_own_mistake_is_passed_on(sweep, capfd):
    runs, arguments = sweep
    with pytest.raises(UserError, match=r"launch/gke\.sh did not take .*_s\d \(status 2\)"):
        hand_over(read_launch("gke.sh create --tpu=v5e:4x5"), runs, "abl", "/gcs/w", arguments)
    assert "error: " in capfd.readouterr().err
