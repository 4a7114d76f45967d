"""Text to packed sequences: python -m deberta_jax.prepare --config=FILE --workdir=DIR"""

from absl import flags

from deberta_jax import command
from deberta_jax.data.dataset import data_directory
from deberta_jax.preparation import pipeline


def main(parsed) -> None:
    config, workdir = command.config(parsed), command.workdir(parsed)
    directory = data_directory(config.data, workdir)
    pipeline.prepare(config.data, directory, overwrite=parsed.overwrite)


if __name__ == "__main__":
    flags.DEFINE_bool("overwrite", False, "Remake data that is there already.")
    command.run(main)
