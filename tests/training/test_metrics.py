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


DAMAGE = {
    "cut": b'{"step": 2, "train/lo\n',
    "no JSON": b"step 2\n",
    "no UTF-8": b'{"step": 2, "\xff": 1}\n',
    "a list": b"[2]\n",
    "a number": b"2\n",
    "no step": b'{"train/loss": 1.0}\n',
    "a step of text": b'{"step": "2"}\n',
    "a step that is true": b'{"step": true}\n',
    "a value of text": b'{"step": 2, "train/loss": "1.0"}\n',
    "a value that is null": b'{"step": 2, "train/loss": null}\n',
    "deep": b'{"step": 2, "a": ' + b"[" * 100_000 + b"\n",
    "a huge number": b'{"step": ' + b"9" * 5000 + b"}\n",
    "an empty line": b"\n",
    "zeros": b"\0" * 100 + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_is_left_out_alone_and_said(damage, tmp_path, capsys):
    """A run that goes on keeps the file up to its step byte by byte, the damaged line too."""
    write(tmp_path, 0, [1, 2, 3, 4, 5])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([whole[0], damage, *whole[2:]]))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3, 4, 5]
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"warning: {path}: left out, damaged: line 2"
    write(tmp_path, 4, [5])
    written = path.read_bytes()
    assert written.startswith(b"".join([whole[0], damage, *whole[2:4]]))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3, 4, 5]


def test_lines_out_of_order_are_cut_alone(tmp_path):
    write(tmp_path, 0, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    changed = whole[1].replace(b'"step": 2', b'"step": 700')
    path.write_bytes(b"".join([whole[0], changed, b"damaged\n", whole[2]]))
    write(tmp_path, 3, [])
    assert path.read_bytes() == b"".join([whole[0], b"damaged\n", whole[2]])


def test_a_line_without_its_end_gets_it(tmp_path):
    write(tmp_path, 0, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
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
