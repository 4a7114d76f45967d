"""What TensorBoard's HParams page reads: each run's fields, and which metrics to show."""

from collections.abc import Mapping, Sequence

from deberta_jax import storage
from deberta_jax.report.sweep_results import DONE, Result, metric_names
from deberta_jax.training.events import summary_writer, tensorboardx

_SUFFIX = ".hparams"


def write_hparams(results: Sequence[Result]) -> None:
    """Writes an event file beside each finished run's own, replacing an older one.

    The metrics are the run's own scalars, so `tensorboard --logdir=WORKDIR/runs` shows a row a run,
    with all fields in which the runs differ.
    """
    names = metric_names(results)
    fields = list(dict.fromkeys(field for result in results for field in result.changes))
    for result in results:
        if result.state != DONE:
            continue
        tensorboard = result.workdir / "tensorboard"
        for older in tensorboard.glob(f"*{_SUFFIX}"):
            older.unlink()
        values = {"variant": result.variant} | _values(result.changes, fields)
        summaries = tensorboardx().summary.hparams
        with storage.writing_directory(tensorboard) as directory:
            writer = summary_writer(directory, filename_suffix=_SUFFIX)
            for summary in summaries(values, {name: result.metrics[name] for name in names}):
                writer.file_writer.add_summary(summary)
            writer.close()


def _values(changes: Mapping[str, object], fields: Sequence[str]) -> dict[str, object]:
    """HParams knows numbers, words and truth values; a field that a run leaves alone is "-"."""
    shown = {}
    for field in fields:
        value = changes.get(field, "-")
        if isinstance(value, list | tuple):
            value = "+".join(map(str, value)) or "none"
        shown[field] = value
    return shown
