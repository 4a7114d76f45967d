"""What a run leaves to read."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from deberta_jax.report.run_overview import plot_run
from deberta_jax.training.metrics import MetricWriter, read_metrics


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write(workdir, first_step, steps):
    writer = MetricWriter(workdir, first_step)
    for step in steps:
        writer.write(step, {"train/loss": 1.0 / step, "optim/learning_rate": 1e-3})
    writer.close()


def events(workdir):
    """The scalars in the event files, oldest file first: TFRecords of Event messages."""
    for path in sorted((workdir / "tensorboard").glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value


def test_what_is_written_is_read_back(tmp_path):
    write(tmp_path, 0, [1, 2, 3])
    assert read_metrics(tmp_path) == lines(tmp_path)
    assert lines(tmp_path)[1] == {"step": 2, "train/loss": 0.5, "optim/learning_rate": 1e-3}


def test_there_are_no_metrics_before_the_first(tmp_path):
    assert read_metrics(tmp_path) == []
    assert plot_run(tmp_path) is None


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer.write(1, {"train/loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1]
    writer.close()


@pytest.mark.parametrize("kept", [0, 2, 4, 9])
def test_a_resumed_run_drops_what_came_after_its_checkpoint(kept, tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4])
    write(tmp_path, kept, [kept + 1])
    steps = [step for step in (1, 2, 3, 4) if step <= kept]
    assert [line["step"] for line in lines(tmp_path)] == [*steps, kept + 1]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_the_line_that_a_killed_run_was_writing_is_dropped(share, tmp_path):
    write(tmp_path, 0, [1, 2])
    path = tmp_path / "metrics.jsonl"
    last = json.dumps({"step": 2, "eval/loss": 0.25})
    with path.open("a") as file:
        file.write(last[: int(share * len(last))])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    write(tmp_path, 2, [3])
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_tensorboard_gets_every_scalar(tmp_path):
    write(tmp_path, 0, [1, 2])
    assert list(events(tmp_path)) == [
        (1, "train/loss", 1.0),
        (1, "optim/learning_rate", pytest.approx(1e-3)),
        (2, "train/loss", 0.5),
        (2, "optim/learning_rate", pytest.approx(1e-3)),
    ]


def test_the_curves_are_a_picture(tmp_path):
    write(tmp_path, 0, [1, 2, 3])
    path = plot_run(tmp_path)
    assert path == tmp_path / "curves.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    before = path.read_bytes()
    writer = MetricWriter(tmp_path, 3)
    writer.write(4, {"eval/loss": 3.0, "eval/unigram_loss": 4.0, "eval/mlm_accuracy": 0.1})
    writer.close()
    assert plot_run(tmp_path).read_bytes() != before
