"""Held-out metrics of a run, and examples: python -m deberta_jax.evaluate --workdir=DIR

A masked model fills in words, an auto-regressive one continues beginnings of sentences. Where DIR
holds fine-tuned runs, a table of their scores, with the GLUE average where all of its tasks are
there.
"""

from absl import flags

from deberta_jax import command
from deberta_jax.evaluation import finetuning_scores
from deberta_jax.runs.evaluating import held_out_examples, held_out_metrics
from deberta_jax.runs.opening import open_run


def main(parsed) -> None:
    workdir = command.workdir(parsed)
    if finetuning_scores.read_tasks(workdir):
        print(finetuning_scores.table(workdir))
        return
    run = open_run(workdir)
    metrics = held_out_metrics(run)
    print(f"step {run.step}, on held-out documents:")
    for name, value in sorted(metrics.items()):
        print(f"  {name:<22}{value:.4f}")
    if "eval/unigram_loss" in metrics:
        gain = metrics["eval/unigram_loss"] - metrics["eval/loss"]
        print(f"  {gain:.2f} nats under the unigram baseline")
    print()
    for line in held_out_examples(run, parsed.examples):
        print(line)


if __name__ == "__main__":
    flags.DEFINE_integer("examples", 8, "Examples to show, of each kind.", lower_bound=0)
    command.run(main, needs_config=False)
