"""Sweep files made up for a test, read as the verb reads them."""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from deberta_jax.schema import freeze
from deberta_jax.sweeps.variants import SweepFile, command_line, read_file, read_runs

ROOT = Path(__file__).parents[2]
HEAD = '''"""A sweep for a test.

More.
"""

from deberta_jax.sweeps import product, sample, zipped
from tests.tiny_recipe import get_config
'''


def write(directory: Path, body: str) -> Path:
    path = directory / "made_up.py"
    path.write_text(f"{HEAD}\n\n{body}\n")
    return path


def parsed(arguments: list[str]):
    """What `--config=... --config.a.b=c` gives a verb, parsed as on a command line."""
    values = flags.FlagValues()
    line = ["verb", *arguments]
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=line)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(line)
    return values


def read(path: Path | str, workdir: Path, *overrides: str):
    """(the sweep file, its runs, the fields that the command line set)."""
    values = parsed([f"--config={path}", *overrides])
    file: SweepFile = read_file(str(path))
    given = list(values["config"].override_values)
    return file, read_runs(file, values.config, workdir), given


def as_trained(run, file, given):
    """The config that `deberta_jax.train` gets from a run's command line."""
    return freeze(parsed(command_line(run, file, given)).config)
