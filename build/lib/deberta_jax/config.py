"""Every field of a run with its comment and value: python -m deberta_jax.config --config=FILE"""

from deberta_jax import command
from deberta_jax.schema import comments, default, flatten

__all__ = ["default"]  # recipes written for version 0.1 call `config.default()`


def main(parsed) -> None:
    values = flatten(command.config(parsed))
    width = max(map(len, values)) + 2
    for name, comment in comments().items():
        if name in values:
            print(f"{name:<{width}}{values[name]!r}\n{'':<{width}}{comment}")


if __name__ == "__main__":
    command.run(main, workdir=False)
