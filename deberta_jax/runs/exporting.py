"""Writing a run, or a checkpoint, as files that other code loads."""

from pathlib import Path

from deberta_jax.errors import UserError
from deberta_jax.interop import pretrained
from deberta_jax.interop.names import task_of_tensors
from deberta_jax.model.task_heads import task_of
from deberta_jax.runs.loading import load_pretrained, read_checkpoint, tokenizer_of
from deberta_jax.runs.opening import open_run

GRAPH = "model.onnx"
# What `transformers` calls the objectives of its sequence classifier.
_PROBLEM_TYPES = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def export(source: Path, out: Path, *, onnx: bool = False, max_length: int = 512) -> str:
    """Writes `out`, which `transformers` and `load_pretrained` read; returns what was exported.

    A run is written as `model.safetensors`, `config.json` and its tokenizer. Where its objective
    exports several models, the first lies in `out` and each of the others in a folder of its name.

    Args:
        source: the workdir of a run, fine-tuned or not; with `onnx` also a checkpoint.
        out: the directory to write.
        onnx: whether to write `model.onnx` too: the fine-tuned model with its head, or else the
            encoder.
        max_length: tokens of the longest input of `model.onnx`.

    Raises:
        UserError: `source` is neither, or `out` cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; it must be a directory")
    if not _is_checkpoint(source):
        return _export_run(source, out, onnx, max_length)
    if not onnx:
        raise UserError(f"{source} is a checkpoint already; with --onnx a graph is made of it")
    head = task_of_tensors(read_checkpoint(source).tensors)
    model, params = load_pretrained(source, head)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer_of(source).save(out)
    write_graph(model, params, out / GRAPH, max_length)
    return str(source)


def _is_checkpoint(directory: Path) -> bool:
    return any(file for end in ("safetensors", "bin") for file in directory.glob(f"*.{end}"))


def _export_run(workdir: Path, out: Path, onnx: bool, max_length: int) -> str:
    run = open_run(workdir)
    first = run.objective.exported[0]
    for name in run.objective.exported:
        directory = out if name == first else out / name
        model, released = run.objective.models[name], run.released(name)
        labels, problem = run.config.task.labels, _PROBLEM_TYPES.get(run.config.objective)
        pretrained.write(
            directory, model, released.tensors, label_names=labels, problem_type=problem
        )
        run.write_tokenizer(directory)
        if onnx:
            params = run.objective.params_of(run.params, name)
            write_graph(model, params, directory / GRAPH, max_length)
    return f"step {run.step}"


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
