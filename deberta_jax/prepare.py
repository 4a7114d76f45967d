"""Text to packed sequences: python -m deberta_jax.prepare --config=FILE --workdir=DIR"""

from pathlib import Path

from absl import flags

from deberta_jax import command
from deberta_jax.config import Config
from deberta_jax.data import dataset


def data_directory(config: Config, workdir: Path) -> Path:
    """Where the prepared data of a run lives: `data.dir`, or `data` in the workdir."""
    return Path(config.data.dir).expanduser() if config.data.dir else workdir / "data"


def main(parsed) -> None:
    config, workdir = command.config(parsed), command.workdir(parsed)
    directory = data_directory(config, workdir)
    dataset.prepare(config.data, directory, overwrite=parsed.overwrite)


if __name__ == "__main__":
    flags.DEFINE_bool("overwrite", False, "Remake data that is there already.")
    command.run(main)
