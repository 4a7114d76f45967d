"""A checkpoint that `transformers` loads: python -m deberta_jax.export --workdir=DIR --out=DIR

DIR is the workdir of a run, fine-tuned or not, or a checkpoint. With --onnx also `model.onnx`, for
inputs of up to --max_length tokens: the fine-tuned model with its head, or else the encoder.

A masked LM's head is called `cls.predictions.*` in the file, as `transformers` calls it by default;
--head_names=lm_predictions gives it the names of the released checkpoints.
"""

from absl import flags

from deberta_jax import command, storage
from deberta_jax.errors import UserError
from deberta_jax.interop.names import LM_HEAD_NAMES
from deberta_jax.runs.exporting import export


def main(parsed) -> None:
    if not parsed.out:
        raise UserError("--out is missing; it names the directory to write")
    out = storage.user_path(parsed.out)
    options = {"onnx": parsed.onnx, "max_length": parsed.max_length}
    options["head_names"] = parsed.head_names
    exported = export(command.workdir(parsed), out, **options)
    print(f"{exported} exported to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Directory to write.")
    flags.DEFINE_bool("onnx", False, "Write model.onnx too.")
    flags.DEFINE_integer("max_length", 512, "Longest input of model.onnx.", lower_bound=1)
    flags.DEFINE_enum(
        "head_names", LM_HEAD_NAMES[0], LM_HEAD_NAMES, "Names of a masked LM's head in the file."
    )
    command.run(main, needs_config=False)
