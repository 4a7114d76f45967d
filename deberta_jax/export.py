"""A checkpoint that `transformers` loads: python -m deberta_jax.export --workdir=DIR --out=DIR"""

from pathlib import Path

from absl import flags

from deberta_jax import command
from deberta_jax.data.tokenizer import write_pretrained
from deberta_jax.errors import UserError
from deberta_jax.interop import pretrained
from deberta_jax.pretrained import tokenizer_of
from deberta_jax.workdir import open_run


def main(parsed) -> None:
    if not parsed.out:
        raise UserError("--out is missing; it names the directory to write")
    run, out = open_run(command.workdir(parsed)), Path(parsed.out).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; it must be a directory")
    pretrained.save(out, run.objective.model, run.params, label_names=run.config.task.labels)
    if run.prepared:
        limit = run.config.model.max_position_embeddings
        write_pretrained(run.prepared.tokenizer, out, model_max_length=limit)
    else:
        tokenizer_of(parsed.workdir).save(out)
    print(f"step {run.step} exported to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Directory to write.")
    command.run(main, needs_config=False)
