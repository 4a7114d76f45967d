"""A checkpoint that `transformers` loads: python -m deberta_jax.export --workdir=DIR --out=DIR

DIR is the workdir of a run, fine-tuned or not, or a checkpoint. With --onnx also `model.onnx`, for
inputs of up to --max_length tokens: the fine-tuned model with its head, or else the encoder.
"""

from pathlib import Path

from absl import flags

from deberta_jax import command, locks
from deberta_jax.errors import UserError
from deberta_jax.runs.exporting import export


def main(parsed) -> None:
    if not parsed.out:
        raise UserError("--out is missing; it names the directory to write")
    out = Path(parsed.out).expanduser()
    options = {"onnx": parsed.onnx, "max_length": parsed.max_length}
    with locks.held(out, "export"):
        exported = export(command.workdir(parsed), out, **options)
    print(f"{exported} exported to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Directory to write.")
    flags.DEFINE_bool("onnx", False, "Write model.onnx too.")
    flags.DEFINE_integer("max_length", 512, "Longest input of model.onnx.", lower_bound=1)
    command.run(main, needs_config=False)
