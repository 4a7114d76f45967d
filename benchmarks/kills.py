"""What becomes of runs that are killed, stopped, and damaged: the tables of docs/reliability.md.

    python -m benchmarks.kills damage --count=300
    python -m benchmarks.kills kills --count=50 --processes=2
    python -m benchmarks.kills signals
    python -m benchmarks.kills peers

Real processes, on the CPU, of the tiny recipe of the tests. `damage` changes every file of a
checkpoint in turn (a flipped bit, a cut, a deletion) and resumes. `kills` sends SIGKILL at random
moments, half of them while a checkpoint is being written, resumes, and compares the end with that
of an undisturbed run, bit for bit. `signals` sends SIGTERM and SIGINT in every phase. `peers` kills
and suspends one of two processes.
"""

import argparse
import collections
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.errors import UserError
from deberta_jax.training.checkpoints import SET_ASIDE, Checkpoints

ROOT = Path(__file__).parents[1]
RECIPE = "tests/tiny_recipe.py"
COMMIT = "commit_success.txt"
Processes = list[subprocess.Popen]


# --- damage -------------------------------------------------------------------------------------


def damage(count: int, rng: random.Random, directory: Path) -> None:
    """Damages files of the newest of two checkpoints; the table says what resuming did."""
    states = {step: _state(rng, step) for step in (10, 20)}
    _save(directory / "whole", states)
    newest = directory / "whole" / "checkpoints" / "20"
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    kinds: list[Callable[[Path, random.Random], None]] = [_flip, _flip, _flip, _cut, _delete]
    tally: collections.Counter[tuple[str, str]] = collections.Counter()
    for number in range(max(count, len(files))):
        # Every file in turn, with every kind of damage.
        name, kind = files[number % len(files)], kinds[number // len(files) % len(kinds)]
        workdir = directory / "damaged"
        shutil.copytree(directory / "whole", workdir)
        kind(workdir / "checkpoints" / "20" / name, rng)
        tally[kind.__name__.strip("_"), _resumed(workdir, states, str(name))] += 1
        shutil.rmtree(workdir)
    print(f"{sum(tally.values())} damages over {len(files)} files\n")
    print("| damage | what resuming did | times |\n|---|---|---|")
    for (damaged_by, outcome), times in sorted(tally.items()):
        print(f"| {damaged_by} | {outcome} | {times} |")


def _state(rng: random.Random, step: int) -> dict:
    generator = np.random.default_rng(rng.getrandbits(32))
    return {
        "step": jnp.int32(step),
        "params": {name: jnp.asarray(generator.normal(size=(64, 8)), jnp.float32) for name in "ab"},
    }


def _save(workdir: Path, states: dict[int, dict]) -> None:
    with Checkpoints(workdir, len(states)) as checkpoints:
        checkpoints.of_run("benchmark")
        for step, state in states.items():
            checkpoints.save(step, state, {"next_step": step}, {"seconds": 1.5})
        checkpoints.wait()


def _resumed(workdir: Path, states: dict[int, dict], name: str) -> str:
    try:
        with Checkpoints(workdir, len(states)) as checkpoints:
            notes = checkpoints.of_run("benchmark")
            restored = checkpoints.restore(jax.eval_shape(lambda: states[20]))
    except UserError as error:
        return f"refused{' naming the file' if name in str(error) else ''}"
    assert restored is not None
    step = restored.input["next_step"]
    want = states[step]
    same = jax.tree.map(lambda x, y: bool((np.asarray(x) == y).all()), restored.state, want)
    if not all(jax.tree.leaves(same)):
        return "SILENTLY WRONG"
    if step == 20:
        return "restored, bit for bit"
    if not (workdir / SET_ASIDE / "20").is_dir():
        return "FELL BACK, WITHOUT KEEPING THE DAMAGED ONE"
    if not any(name in note for note in notes):
        return "FELL BACK, WITHOUT NAMING THE FILE"
    return "fell back to the one before, naming the file; the damaged one is set aside"


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _cut(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def _delete(path: Path, rng: random.Random) -> None:
    path.unlink()


# --- real runs ----------------------------------------------------------------------------------


class Runs:
    """Starts runs of the tiny recipe on the same data."""

    def __init__(self, directory: Path, processes: int, steps: int):
        self.directory, self.processes = directory, processes
        self._options = [
            f"--config={RECIPE}",
            f"--config.data.dir={directory / 'data'}",
            f"--config.train.duration={steps} steps",
            "--config.train.heartbeat_seconds=10",
        ]
        self._environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }
        prepare = [sys.executable, "-m", "deberta_jax.prepare", *self._options[:2]]
        workdir = f"--workdir={directory}"
        subprocess.run([*prepare, workdir], cwd=ROOT, check=True, capture_output=True)

    def start(self, workdir: Path, *options: str, compiled: bool = True) -> Processes:
        """The processes of a run; each writes to a file in `workdir`'s parent."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        environment = dict(self._environment)
        if compiled:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(self.directory / "compiled")
        else:
            environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        started = []
        for index in range(self.processes):
            command = [sys.executable, "-u", "-m", "deberta_jax.train", *self._options, *options]
            command.append(f"--workdir={workdir}")
            if self.processes > 1:
                command.append(f"--distributed={address},{self.processes},{index}")
            log = _log(workdir, index).open("w")
            started.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
                )
            )
        return started


def _log(workdir: Path, index: int = 0) -> Path:
    return workdir.parent / f"{workdir.name}_{index}.log"


def _statuses(started: Processes, seconds: float = 600) -> list[int]:
    """The exit statuses, as a shell reports them."""
    end = time.monotonic() + seconds
    for process in started:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return [status if status >= 0 else 128 - status for status in (p.returncode for p in started)]


def _wait_for(workdir: Path, pattern: str, started: Processes, seconds: float = 300) -> bool:
    """Whether process 0 prints the pattern before it ends."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if re.search(pattern, _log(workdir).read_text(errors="replace")):
            return True
        if started[0].poll() is not None:
            return False
        time.sleep(0.02)
    return False


def digest(workdir: Path) -> str:
    """Of the arrays in the newest checkpoint, whatever files hold them."""
    import orbax.checkpoint as ocp

    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.latest()
    path = (workdir / "checkpoints" / str(step) / "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = jax.tree.leaves_with_path(reader.restore(path))
    result = hashlib.sha256(str(step).encode())
    for name, leaf in restored:
        result.update(jax.tree_util.keystr(name).encode() + np.asarray(leaf).tobytes())
    return result.hexdigest()


def kills(count: int, rng: random.Random, directory: Path, processes: int) -> None:
    """SIGKILL at random moments, half of them in a save; resumes until the run is complete."""
    steps = 3 * count + 30
    runs = Runs(directory, processes, steps)
    whole, killed = directory / "whole", directory / "killed"
    started = runs.start(whole)
    _wait_for(whole, r"\nstep +1/", started)
    begun = time.monotonic()
    assert _statuses(started) == [0] * processes, _log(whole).read_text()
    pace = (time.monotonic() - begun) / steps
    lost, torn, in_save = [], 0, 0
    for number in range(count):
        started = runs.start(killed)
        if not _wait_for(killed, r"\nstep +\d+/", started):
            break  # complete
        time.sleep(rng.uniform(0, 6 * pace))
        if number % 2 and _wait_for_save(killed, started):
            in_save += 1
        for process in started if number % 4 else [rng.choice(started)]:
            process.kill()
        reached = _last_step(killed)
        _statuses(started)
        try:
            with Checkpoints(killed, read_only=True) as checkpoints:
                lost.append(max(0, reached - (checkpoints.latest() or 0)))
        except UserError:
            torn += 1
    assert _statuses(runs.start(killed)) == [0] * processes, _log(killed).read_text()
    equal = "bit for bit" if digest(whole) == digest(killed) else "DIFFERENT"
    aside = len(list((killed / SET_ASIDE).glob("*")))
    print("| processes | kills | in a save | torn | most steps lost (interval 3) | the end |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {processes} | {len(lost)} | {in_save} | {torn + aside} | {max(lost, default=0)} | "
        f"{equal} |"
    )


def _last_step(workdir: Path) -> int:
    found = re.findall(r"\nstep +(\d+)/", _log(workdir).read_text(errors="replace"))
    return int(found[-1]) if found else 0


def _wait_for_save(workdir: Path, started: Processes) -> bool:
    """Waits until a checkpoint is being written; False where the run ends first."""
    while started[0].poll() is None:
        for folder in (workdir / "checkpoints").glob("[0-9]*"):
            if not (folder / COMMIT).exists():
                return True
        time.sleep(0.002)
    return False


# What a run is made to do, and what it prints when it does.
_PHASES: dict[str, tuple[list[str], str | float, bool]] = {
    "import": ([], 0.3, True),
    "start": ([], 2.0, True),
    "compile, cold": ([], r"of 8 sequences", False),
    "first steps": ([], r"\nstep +1/", True),
    "steps": ([], r"\nstep +12/", True),
    "evaluation": (
        ["--config.train.eval_every=6", "--config.train.eval_batches=0"], r"\nstep +6/", True,
    ),
    "evaluation, cold": (["--config.train.eval_every=6"], r"\nstep +6/", False),
}  # fmt: skip


def signals(rng: random.Random, directory: Path, processes: int, phases: list[str]) -> None:
    """SIGTERM and SIGINT in every phase of a run: status, seconds, steps lost."""
    runs = Runs(directory, processes, 100_000)
    print("| phase | signal | to | status | seconds | of them after the save | steps lost |")
    print("|---|---|---|---|---|---|---|")
    for number, phase in enumerate(phases):
        options, moment, compiled = _PHASES[phase]
        for kind in (signal.SIGTERM, signal.SIGINT):
            workdir = directory / f"{number}_{kind.name}"
            started = runs.start(workdir, *options, compiled=compiled)
            if isinstance(moment, str):
                _wait_for(workdir, moment, started)
                time.sleep(rng.uniform(0.1, 0.5))
            else:
                time.sleep(moment)
            target = rng.choice(started)
            begun = time.monotonic()
            target.send_signal(kind)
            statuses = set(_statuses(started, 120))
            seconds = time.monotonic() - begun
            print(
                f"| {phase} | {kind.name} | {started.index(target)} | "
                f"{', '.join(map(str, sorted(statuses)))} | {seconds:.1f} | "
                f"{_since_save(workdir, seconds)} | {_lost(workdir)} |",
                flush=True,
            )


def _since_save(workdir: Path, seconds: float) -> str:
    """Seconds since the newest checkpoint was complete, if that is less than `seconds` ago."""
    times = [path.stat().st_mtime for path in workdir.glob(f"checkpoints/[0-9]*/{COMMIT}")]
    since = time.time() - max(times, default=0)
    return f"{since:.1f}" if since < seconds else "-"


def _lost(workdir: Path) -> int:
    reached = _last_step(workdir)
    if not (workdir / "checkpoints").exists():
        return reached
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return max(0, reached - (checkpoints.latest() or 0))


def peers(rng: random.Random, directory: Path) -> None:
    """One of two processes is killed or suspended: how long until the other has ended."""
    runs = Runs(directory, 2, 100_000)
    print("| process | gets | the other's status | after seconds (heartbeat 10) | its last line |")
    print("|---|---|---|---|---|")
    for index in (0, 1):
        for kind in (signal.SIGKILL, signal.SIGSTOP):
            workdir = directory / f"{index}_{kind.name}"
            started = runs.start(workdir)
            _wait_for(workdir, r"\nstep +5/", started)
            time.sleep(rng.uniform(0, 1))
            begun = time.monotonic()
            started[index].send_signal(kind)
            (status,) = _statuses([started[1 - index]], 120)
            seconds = time.monotonic() - begun
            started[index].kill()
            _statuses(started)
            lines = _log(workdir, 1 - index).read_text(errors="replace").strip().splitlines()
            last = next((line for line in reversed(lines) if "error" in line), "")[:100]
            print(f"| {index} | {kind.name} | {status} | {seconds:.1f} | {last} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("damage", "kills", "signals", "peers"))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--phases", nargs="+", choices=list(_PHASES), default=list(_PHASES))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    args = parser.parse_args(arguments)
    rng = random.Random(args.seed)
    print(f"seed {args.seed}")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if args.what == "damage":
            damage(args.count, rng, directory)
        elif args.what == "kills":
            kills(args.count, rng, directory, args.processes)
        elif args.what == "signals":
            signals(rng, directory, args.processes, args.phases)
        else:
            peers(rng, directory)


if __name__ == "__main__":
    main()
