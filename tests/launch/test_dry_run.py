"""--dry-run prints exactly what would run, and runs nothing."""

import os
import subprocess

import pytest

from tests.launch.scripts import Notes, launch, printed


def cases(job, directory):
    """(script, arguments) of every verb of every launcher."""
    vm = [*job.located, "--tpu=v5e:4x4", *job.training]
    for verb in ("launch", "create", "wait", "setup", "train", "logs", "status", "stop", "delete"):
        yield "tpu_vm.sh", [verb, *vm, "--slices=3", "--spot"]
        yield "tpu_vm.sh", [verb, *vm, "--direct", "--reserved", "--service-account=a@b"]
    pods = [*job.named, "--tpu=v6e:8x8", f"--image={job.image}", *job.training]
    cluster = [f"--cluster={job.cluster}", f"--zone={job.zone}", "--region=r"]
    for verb in ("image", "nodes", "create", "status", "logs", "delete"):
        yield "gke.sh", [verb, *pods, *cluster, "--slices=2", "--queue=q", "--spot"]
    for verb in ("create", "status", "delete"):
        yield "gke.sh", [verb, *pods, *cluster, "--xpk", f"--project={job.project}"]
    if job.workdir.startswith("gs://"):
        for verb in ("launch", "status", "logs", "delete"):
            yield "sky.sh", [verb, *job.named, "--tpu=v5p:4x4x4", *job.training, "--infra=gcp"]
        yield "sky.sh", ["launch", *job.named, "--gpus=H100:8", "--nodes=2", *job.training]
    slurm = ["--nodes=2", "--gpus-per-node=8", f"--config={job.config}", job.override]
    yield "slurm.sh", [*slurm, f"--workdir={directory}/run", "--time=1:00:00", "--sessions=4"]


@pytest.mark.parametrize("kind", ["job", "mounted"])
def test_what_is_printed_is_what_runs(request, kind, tmp_path):
    job = request.getfixturevalue(kind)
    notes = Notes(tmp_path, ["ACTIVE"] * 20)
    notes.environment["PYTHON"] = "python"
    for script, arguments in cases(job, tmp_path):
        text = printed(script, *arguments, **notes.environment)
        assert not notes.taken(), f"{script} --dry-run ran something"
        done = launch(script, *arguments, **notes.environment)
        assert done.returncode == 0, done.stderr
        ran = notes.taken()
        (tmp_path / "printed.sh").write_text(text)
        environment = os.environ | notes.environment
        subprocess.run(["bash", tmp_path / "printed.sh"], env=environment, check=True, stdin=-3)
        assert ran == notes.taken()
        assert ran


@pytest.mark.parametrize(
    ("states", "deletes", "creates"),
    [(["SUSPENDED", "ACTIVE"], 1, 1), (["", "ACTIVE"], 0, 1), (["ACTIVE"], 0, 0)],
)
def test_resume_spares_a_tpu_that_is_there(job, tmp_path, states, deletes, creates):
    notes = Notes(tmp_path, states)
    arguments = [*job.located, "--tpu=v5e:4x4", *job.training]
    done = launch("tpu_vm.sh", "resume", *arguments, **notes.environment)
    assert done.returncode == 0, done.stderr
    ran = notes.taken()
    assert ran.count("queued-resources delete") == deletes
    assert ran.count("queued-resources create") == creates
    assert ran.count("tpu_host.sh\\ train") == 1


def test_wait_ends_where_there_will_be_no_tpu(job, tmp_path):
    notes = Notes(tmp_path, ["FAILED"])
    done = launch("tpu_vm.sh", "wait", *job.located, **notes.environment)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {job.name} is FAILED")
