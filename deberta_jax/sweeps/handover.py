"""A sweep's runs handed to a scheduler, through the launchers in `launch/`."""

import contextlib
import hashlib
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deberta_jax import storage
from deberta_jax.errors import UserError
from deberta_jax.sweeps.variants import Run

ROOT = Path(__file__).parents[2]
# Each launcher, and how one begins a run.
LAUNCHERS = {"gke.sh": ["create"], "sky.sh": ["launch"], "slurm.sh": []}
# What the sweep fills in.
OWN = ("name", "config", "workdir", "variants")
VARIANTS = "variants.txt"
_LONGEST_NAME = 40


def read_launch(launch: str) -> list[str]:
    """The launcher with its verb and options, from what --launch gives.

    Raises:
        UserError: it is no launcher, it gives what the sweep fills in, or this is no checkout.
    """
    try:
        script, *options = shlex.split(launch)
    except ValueError:
        script, options = "", []
    script = script.removeprefix("launch/")
    if script not in LAUNCHERS:
        raise UserError(
            f"--launch={launch}: it must begin with one of {', '.join(LAUNCHERS)}, such as "
            "'gke.sh create --tpu=v5e:8x8 --image=IMAGE --bucket=BUCKET'"
        )
    if not (ROOT / "launch" / script).is_file():
        # It hands over the checkout itself: sky.sh uploads it, slurm.sh runs its .venv.
        raise UserError(f"--launch={launch}: launch/{script} comes with a checkout, not a wheel")
    verb = LAUNCHERS[script]
    if options[: len(verb)] != verb:
        raise UserError(f"--launch={launch}: {script} begins a run by '{script} {verb[0]}'")
    for option in options:
        name = option.removeprefix("--").split("=")[0]
        if name in OWN or name.startswith("config."):
            raise UserError(f"--launch: --{name} is the sweep's own to give")
    return [script, *options]


def hand_over(
    launch: Sequence[str],
    runs: Sequence[Run],
    stem: str,
    workdir: Path,
    arguments: Callable[[Run], list[str]],
) -> None:
    """Submits every run, as a job of its own, or all as one array of Slurm's.

    Args:
        launch: from `read_launch`; with --dry-run nothing is submitted or written.
        runs: those that are to run.
        stem: what the jobs' names begin with.
        workdir: of the sweep.
        arguments: those of `deberta_jax.train` for a run.

    Raises:
        UserError: a launcher refused; what was submitted before stays so.
    """
    script, *options = launch
    dry_run = "--dry-run" in options
    if script == "sky.sh":
        options = [*options, "--detach"]
    if script == "slurm.sh" and storage.is_url(workdir):
        raise UserError(
            f"--workdir={workdir}: the jobs of slurm.sh read their variants from a file that all "
            "nodes see; name a directory on shared storage"
        )
    if script == "slurm.sh":
        recipe, lines = arguments(runs[0])[0], [shlex.join(arguments(run)[1:]) for run in runs]
        with _written("".join(f"{line}\n" for line in lines), workdir, dry_run) as variants:
            array = [recipe, f"--workdir={workdir}", f"--variants={variants}"]
            _launch([script, *options, f"--name={job_name(stem, '')}", *array], stem)
        return
    for run in runs:
        name = f"--name={job_name(stem, run.name)}"
        _launch([script, *options, name, *arguments(run)], run.name)


def job_name(stem: str, run: str) -> str:
    """A name that every scheduler takes: lower-case letters, digits and hyphens, 40 at most."""
    whole = f"{stem}-{run}".rstrip("-")
    name = re.sub(r"[^a-z0-9]+", "-", whole.lower()).strip("-")
    name = name if name[:1].isalpha() else f"sweep-{name}"
    if len(name) <= _LONGEST_NAME and re.fullmatch(r"[a-z][a-z0-9_-]*", whole):
        return name
    # What was left out may be all that tells two names apart: 1e-05 from 1e+05.
    mark = hashlib.sha256(whole.encode()).hexdigest()[:6]
    return f"{name[: _LONGEST_NAME - 7].rstrip('-')}-{mark}"


@contextlib.contextmanager
def _written(text: str, workdir: Path, dry_run: bool) -> Iterator[Path]:
    """A file with `text`: in the sweep's workdir, or in a dry run for a moment elsewhere."""
    if not dry_run:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / VARIANTS).write_text(text)
        yield workdir / VARIANTS
        return
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / VARIANTS).write_text(text)
        yield Path(directory) / VARIANTS


def _launch(words: Sequence[str], what: str) -> None:
    script, *options = words
    done = subprocess.run(["bash", str(ROOT / "launch" / script), *options], cwd=ROOT)
    if done.returncode:
        raise UserError(f"launch/{script} did not take {what} (status {done.returncode})")
