"""A checkpoint that `transformers` loads: python -m deberta_jax.export --workdir=DIR --out=DIR

DIR is the workdir of a run, fine-tuned or not, or a checkpoint. With --onnx also `model.onnx`, for
inputs of up to --max_length tokens: the fine-tuned model with its head, or else the encoder.
"""

from pathlib import Path

from absl import flags

from deberta_jax import command
from deberta_jax.data.tokenizer import write_pretrained
from deberta_jax.errors import UserError
from deberta_jax.interop import pretrained
from deberta_jax.interop.names import task_of_tensors
from deberta_jax.model.task_heads import task_of
from deberta_jax.runs.loading import load_pretrained, read_checkpoint, tokenizer_of
from deberta_jax.runs.opening import open_run


def main(parsed) -> None:
    if not parsed.out:
        raise UserError("--out is missing; it names the directory to write")
    source, out = command.workdir(parsed), Path(parsed.out).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; it must be a directory")
    is_checkpoint = any(file for end in ("safetensors", "bin") for file in source.glob(f"*.{end}"))
    if not is_checkpoint:
        run = open_run(source)
        model, params, what = run.objective.model, run.params, f"step {run.step}"
        pretrained.save(out, model, params, label_names=run.config.task.labels)
        if run.prepared:
            limit = run.config.model.max_position_embeddings
            write_pretrained(run.prepared.tokenizer, out, model_max_length=limit)
        else:
            tokenizer_of(source).save(out)
    elif parsed.onnx:
        head = task_of_tensors(read_checkpoint(source).tensors)
        model, params = load_pretrained(source, head)
        what = str(source)
        out.mkdir(parents=True, exist_ok=True)
        tokenizer_of(source).save(out)
    else:
        raise UserError(f"{source} is a checkpoint already; with --onnx a graph is made of it")
    if parsed.onnx:
        write_graph(model, params, out / "model.onnx", parsed.max_length)
    print(f"{what} exported to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")


def write_graph(model, params, path: Path, max_length: int) -> None:
    """Writes the model as ONNX; without its head where that only pre-trains.

    Raises:
        UserError: the package that writes it is missing.
    """
    try:
        from deberta_jax.interop.onnx_graph import HEADS, write_onnx
    except ImportError as error:
        raise UserError("--onnx needs the finetune extra: pip install -e '.[finetune]'") from error
    head = task_of(model) if task_of(model) in HEADS else None
    write_onnx(path, model.config, head, pretrained.to_state_dict(model, params), max_length)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Directory to write.")
    flags.DEFINE_bool("onnx", False, "Write model.onnx too.")
    flags.DEFINE_integer("max_length", 512, "Longest input of model.onnx.", lower_bound=1)
    command.run(main, needs_config=False)
