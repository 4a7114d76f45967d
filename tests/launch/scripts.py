"""Running the launchers: what they print, and what they run when their tools only take notes."""

import os
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
TOOLS = ("gcloud", "kubectl", "xpk", "docker", "sky", "sbatch", "srun", "git", "sudo", "python")
# Notes its arguments and its input; says the next of the states when it is asked for one.
NOTE = """#!/bin/bash
{ printf '%q ' "${0##*/}" "$@"; echo; cat; } >> "$NOTES"
[[ "$*" != *describe* ]] || { head -n 1 "$NOTES.states"; sed -i 1d "$NOTES.states"; }
"""


def launch(script, *arguments, cwd=ROOT, **environment):
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def printed(script, *arguments, **environment) -> str:
    """What the launcher says it would run."""
    done = launch(script, *arguments, "--dry-run", **environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def commands(text: str) -> list[list[str]]:
    """The words of every command in `text`, one a line."""
    return [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]


def option(command: list[str], name: str) -> str:
    """The value of the only --name=value among the words of `command`."""
    (word,) = [word for word in command if word.startswith(f"--{name}=")]
    return word.removeprefix(f"--{name}=")


class Notes:
    """Tools that only take notes, in `directory`."""

    def __init__(self, directory: Path, states=()):
        self.tools, self.file = directory / "tools", directory / "notes"
        self.tools.mkdir()
        for tool in TOOLS:
            (self.tools / tool).write_text(NOTE)
            (self.tools / tool).chmod(0o755)
        Path(f"{self.file}.states").write_text("".join(f"{state}\n" for state in states))
        self.environment = {
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "NOTES": str(self.file),
        }

    def taken(self) -> str:
        """What was noted since the last time."""
        if not self.file.exists():
            return ""
        text = self.file.read_text()
        self.file.unlink()
        return text
