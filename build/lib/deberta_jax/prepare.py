"""Text to packed sequences: python -m deberta_jax.prepare --config=FILE --workdir=DIR"""

from absl import flags

from deberta_jax import api, command


def main(parsed) -> None:
    api.prepare(command.config(parsed), command.workdir(parsed), overwrite=parsed.overwrite)


if __name__ == "__main__":
    flags.DEFINE_bool("overwrite", False, "Remake data that is there already.")
    command.run(main)
