"""Held-out metrics of a run, and examples: python -m deberta_jax.evaluate --workdir=DIR

A masked model fills in words, an auto-regressive one continues beginnings of sentences. Where DIR
holds fine-tuned runs, a table of their scores, with the GLUE average where all of its tasks are
there.
"""

from absl import flags

from deberta_jax import command
from deberta_jax.runs.evaluating import evaluate


def main(parsed) -> None:
    print("\n".join(evaluate(command.workdir(parsed), parsed.examples)))


if __name__ == "__main__":
    flags.DEFINE_integer("examples", 8, "Examples to show, of each kind.", lower_bound=0)
    command.run(main, needs_config=False)
