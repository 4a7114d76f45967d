"""Pre-training: python -m deberta_jax.train --config=FILE --workdir=DIR

Run again, the same command continues from the last checkpoint, and ends with the parameters that an
uninterrupted run has, bit for bit.
"""

import sys

from deberta_jax import api, command


def main(parsed) -> None:
    if api.train(command.config(parsed), command.workdir(parsed)) is None:
        sys.exit(command.STOPPED)


if __name__ == "__main__":
    command.run(main, processes=True)
