"""Zero-shot scores of sentences: python -m deberta_jax.score --checkpoint=DIR --input=F --out=F

DIR is a run, an export or a released checkpoint. The input is text (a sentence a line), JSONL, or
minimal pairs in BLiMP's format, whose accuracy is printed; "tfds:blimp" is BLiMP itself. A masked
model gives pseudo-log-likelihoods, a causal one log-likelihoods, a v3 discriminator how likely each
token was replaced: docs/language_modelling.md.
"""

from absl import flags

from deberta_jax import command, storage
from deberta_jax.errors import UserError
from deberta_jax.evaluation.sentence_files import read_items
from deberta_jax.runs import directories
from deberta_jax.runs.scoring import AUTO, METHODS, score, summary, write_scores


def main(parsed) -> None:
    for name in ("checkpoint", "input", "out"):
        if not getattr(parsed, name):
            raise UserError(f"--{name} is missing")
    out = storage.user_path(parsed.out)
    directories.check_file(out, "--out")
    directories.require(parsed.checkpoint, "score")
    items = read_items(parsed.input, parsed.text_field, parsed.tfds_dir)
    options = {name: getattr(parsed, name) for name in ("method", "dtype", "batch_tokens")}
    results, method = score(storage.user_path(parsed.checkpoint), items, **options)
    write_scores(out, results, method)
    print(f"{method} of {sum(len(r.scores) for r in results):,} sentences in {out}")
    print("\n".join(summary(results)))


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A run's workdir, an export, a released checkpoint.")
    flags.DEFINE_string("input", None, "Files or globs, or tfds:NAME; separated by commas.")
    flags.DEFINE_string("out", None, "JSONL file to write, a line for each sentence or pair.")
    flags.DEFINE_enum(
        "method",
        AUTO,
        [AUTO, *METHODS],
        "How; auto: rtd, ll or pll, as it suits the model.",
    )
    flags.DEFINE_string("text_field", "text", "Field of the sentence in JSONL.")
    flags.DEFINE_string("tfds_dir", "", "Where TFDS keeps its data. Empty: its default.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What the model computes in.")
    flags.DEFINE_integer("batch_tokens", 16_384, "Tokens computed at once.", lower_bound=1)
    command.run(main, workdir=False, needs_config=False)
