"""Files are written whole or not at all, and every mistake about a path is one line."""

import errno
import os
import threading

import pytest

from deberta_jax import storage
from deberta_jax.errors import UserError


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    storage.write(path, "old")
    with pytest.raises(RuntimeError), storage.writing(path) as unfinished:
        unfinished.write_text("half of the n")
        raise RuntimeError("killed")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["config.json"]


def test_writers_at_once_leave_one_whole_file(tmp_path):
    path, texts = tmp_path / "file", [str(digit) * 100_000 for digit in range(8)]
    threads = [threading.Thread(target=storage.write, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("values", [{"a": [1, "é"]}, [None, 2.5], "text"])
def test_json_comes_back(tmp_path, values):
    storage.write_json(tmp_path / "file.json", values)
    assert storage.read_json(tmp_path / "file.json") == values


def test_what_may_pass_is_tried_again_with_longer_pauses():
    pauses, errors = [], [OSError(errno.EIO, "input/output error")] * 3

    def attempt():
        if errors:
            raise errors.pop()
        return "done"

    assert storage.retried(attempt, sleep=pauses.append) == "done"
    assert pauses == [0.1, 0.2, 0.4]


@pytest.mark.parametrize("number, attempts", [(errno.EIO, 3), (errno.EACCES, 1), (errno.ENOSPC, 1)])
def test_what_does_not_pass_is_raised(number, attempts):
    calls = []

    def attempt():
        calls.append(1)
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=os.strerror(number)):
        storage.retried(attempt, attempts=3, sleep=lambda seconds: None)
    assert len(calls) == attempts


def test_paths_are_what_a_person_means(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert os.fspath(storage.as_path("~/runs")) == f"{tmp_path}/runs"
    assert os.fspath(storage.as_path("runs/a")) == "runs/a"
    assert os.fspath(storage.as_path("gs://bucket/runs")) == "gs://bucket/runs"
    with pytest.raises(UserError, match=r"hdfs://x/y: there is no storage hdfs://.*gs://, s3://"):
        storage.as_path("hdfs://x/y")


def damaged(path):
    path.write_text('{"a": ')


def binary(path):
    path.write_bytes(b"\xff\xfe\x00")


def deep(path):
    path.write_text("[" * 100_000)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (damaged, "no JSON"),
        (binary, "not UTF-8"),
        (deep, "no JSON"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_path(tmp_path, make, message):
    path = tmp_path / "file.json"
    make(path)
    with pytest.raises(UserError, match=message) as error:
        storage.read_json(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/.*not a directory"):
        storage.write(tmp_path / "file" / "config.json", "text")


def test_children_are_by_name_and_none_where_there_is_no_directory(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / name).write_text("")
    assert [path.name for path in storage.children(tmp_path)] == ["a", "b", "c"]
    assert storage.children(tmp_path / "missing") == []
