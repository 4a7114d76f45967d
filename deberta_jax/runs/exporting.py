"""Writing a run, or a checkpoint, as files that other code loads."""

from pathlib import Path

from deberta_jax import locks
from deberta_jax.errors import UserError
from deberta_jax.interop import pretrained
from deberta_jax.interop.names import LM_HEAD_NAMES, task_of_tensors
from deberta_jax.model.task_heads import task_of
from deberta_jax.runs import directories
from deberta_jax.runs.directories import Kind
from deberta_jax.runs.loading import load_pretrained, read_checkpoint, tokenizer_of
from deberta_jax.runs.opening import Run, open_run
from deberta_jax.runs.writing import model_folder

GRAPH = "model.onnx"
# What `transformers` calls the objectives of its sequence classifier.
_PROBLEM_TYPES = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def export(
    source: Path,
    out: Path,
    *,
    onnx: bool = False,
    max_length: int = 512,
    head_names: str = LM_HEAD_NAMES[0],
) -> str:
    """Writes `out`, which `transformers` and `load_pretrained` read; returns what was exported.

    A run is written as `model.safetensors`, `config.json` and its tokenizer. Where its objective
    exports several models, the first lies in `out` and each of the others in a folder of its name.

    Args:
        source: the workdir of a run, fine-tuned or not; with `onnx` also a checkpoint.
        out: the directory to write.
        onnx: whether to write `model.onnx` too: the fine-tuned model with its head, or else the
            encoder.
        max_length: tokens of the longest input of `model.onnx`.
        head_names: a masked LM's in the file, one of `interop.names.LM_HEAD_NAMES`.

    Raises:
        UserError: `source` is neither, `out` cannot be written, or another process is there.
    """
    found = directories.require(source, "export --onnx" if onnx else "export")
    directories.require_writable(out, "export --out")
    if onnx:
        _check_onnx()
    if found.kind is not Kind.CHECKPOINT:
        run = open_run(found.path)
        with locks.held(out, "export"), model_folder(out) as folder:
            _export_run(run, folder, onnx, max_length, head_names)
        return f"step {run.step}"
    head = task_of_tensors(read_checkpoint(source).tensors)
    model, params = load_pretrained(source, head)
    with locks.held(out, "export"), model_folder(out, weights=False) as folder:
        tokenizer_of(source).save(folder)
        write_graph(model, params, folder / GRAPH, max_length)
    return str(source)


def _export_run(run: Run, out: Path, onnx: bool, max_length: int, head_names: str) -> None:
    first = run.objective.exported[0]
    for name in run.objective.exported:
        directory = out if name == first else out / name
        model, released = run.objective.models[name], run.released(name)
        labels, problem = run.config.task.labels, _PROBLEM_TYPES.get(run.config.objective)
        pretrained.write(
            directory, model, released.tensors,
            label_names=labels, problem_type=problem, head_names=head_names,
        )  # fmt: skip
        run.write_tokenizer(directory)
        if onnx:
            params = run.objective.params_of(run.params, name)
            write_graph(model, params, directory / GRAPH, max_length)


def _check_onnx() -> None:
    """Raises `UserError` where the package that writes graphs is missing."""
    try:
        import deberta_jax.interop.onnx_graph  # noqa: F401
    except ImportError as error:
        raise UserError("--onnx needs the finetune extra: pip install -e '.[finetune]'") from error


def write_graph(model, params, path: Path, max_length: int) -> None:
    """Writes the model as ONNX; without its head where that only pre-trains."""
    from deberta_jax.interop.onnx_graph import HEADS, write_onnx

    head = task_of(model) if task_of(model) in HEADS else None
    write_onnx(path, model.config, head, pretrained.to_state_dict(model, params), max_length)
