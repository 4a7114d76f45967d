"""A bucket by the calls that a disk is read and written by, on real servers."""

import bz2
import gzip
import json
import lzma
import os
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

import deberta_jax
from deberta_jax import locks, storage, streams
from deberta_jax.data.compressed import reading
from deberta_jax.data.formats import paths
from deberta_jax.data.packed_text import Sequence, open_records, write_records
from deberta_jax.errors import PassingError, UserError
from deberta_jax.sweeps import search
from deberta_jax.sweeps.processes import Pool, Slot, claimed
from deberta_jax.training.metrics import MetricWriter, read_metrics
from tests import tiny_recipe


def test_a_file_comes_back_and_is_replaced(bucket):
    path, values = f"{bucket}/a/config.json", {"x": secrets.token_hex(8)}
    assert not storage.user_path(path).exists()
    storage.write_json(path, "old")
    storage.write_json(path, values)
    assert storage.read_json(path) == values
    assert [os.fspath(file) for file in storage.children(f"{bucket}/a")] == [path]
    assert storage.children(f"{bucket}/none") == []
    with pytest.raises(UserError, match=r"config.js: no such file$"):
        storage.read_text(f"{bucket}/a/config.js")


def test_a_write_that_is_cut_short_leaves_the_old_file(bucket):
    path = f"{bucket}/file"
    storage.write(path, "old")
    with pytest.raises(RuntimeError), storage.writing(path) as unfinished:
        unfinished.write_text("half of the n")
        raise RuntimeError("killed")
    assert storage.read_text(path) == "old"
    assert len(storage.children(bucket)) == 1


def test_a_directory_appears_in_order_and_loses_what_is_stale(bucket):
    with storage.writing_directory(f"{bucket}/out", last=("a",), stale=("*.part",)) as made:
        (made / "sub").mkdir()
        for name in ("a", "b.part", "sub/c"):
            (made / name).write_text(name)
    with storage.writing_directory(f"{bucket}/out", stale=("*.part",)) as made:
        (made / "d.part").write_text("new")
    assert {path.name for path in storage.children(f"{bucket}/out")} == {"a", "sub", "d.part"}
    assert [os.fspath(path) for path in storage.find(bucket, "c")] == [f"{bucket}/out/sub/c"]
    with pytest.raises(RuntimeError), storage.writing_directory(f"{bucket}/no") as made:
        (made / "a").write_text("")
        raise RuntimeError("killed")
    assert storage.children(f"{bucket}/no") == []
    storage.remove_directory(f"{bucket}/out")
    storage.remove_directory(f"{bucket}/out")
    assert not storage.as_path(f"{bucket}/out").exists()


def test_a_local_copy_is_kept_until_the_bucket_changes(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("config.json", "generator/config.json"):
        storage.write(f"{bucket}/model/{name}", "1")
    copy = storage.local_copy(f"{bucket}/model")
    assert (copy / "generator/config.json").read_text() == "1"
    before = (copy / "config.json").stat().st_mtime_ns
    assert storage.local_copy(f"{bucket}/model/") == copy
    assert (copy / "config.json").stat().st_mtime_ns == before
    storage.write(f"{bucket}/model/config.json", "2")
    assert (storage.local_copy(f"{bucket}/model") / "config.json").read_text() == "2"
    with pytest.raises(UserError, match="is no directory"):
        storage.local_copy(f"{bucket}/none")


def test_a_directory_moves_whole(bucket):
    names = {"a", "last", "sub/b"}
    for name in names:
        storage.write(f"{bucket}/5/{name}", name)
    storage.write(f"{bucket}/50/other", "stays")
    storage.move_directory(storage.as_path(f"{bucket}/5"), f"{bucket}/set_aside/5", last="last")
    assert not storage.as_path(f"{bucket}/5").exists()
    assert storage.read_text(f"{bucket}/50/other") == "stays"
    moved = storage.files(f"{bucket}/set_aside/5/**")
    assert {name.removeprefix(f"{bucket}/set_aside/5/") for name in moved} == names
    assert storage.read_text(f"{bucket}/set_aside/5/sub/b") == "sub/b"
    with pytest.raises(UserError, match="there is no such folder"):
        storage.move_directory(f"{bucket}/none", f"{bucket}/to", last="last")


def test_one_process_at_a_time_is_in_a_directory(bucket):
    quick = locks.Timing(renewal=0.05, lease=0.4, settling=0.05)
    lock, seen = f"{bucket}/{locks.FILE}", set()
    with locks.held(bucket, "sweep", quick):
        refused = pytest.raises(PassingError, match="in use by another process")
        with refused, locks.held(bucket, "sweep", quick):
            pass
        while len(seen) < 3:  # it is written anew
            seen.add(storage.read_text(lock))
    assert storage.children(bucket) == []
    elsewhere = json.loads(seen.pop()) | {"machine": "another", "token": "another"}
    storage.write_json(lock, elsewhere)
    with locks.held(bucket, "sweep", quick):  # after a lease in which nobody wrote it
        assert storage.read_json(lock)["token"] != "another"
    assert storage.children(bucket) == []


def test_a_directory_is_copied_both_ways(bucket, tmp_path):
    storage.write(f"{bucket}/tokenizer/spm.model", b"\x00\xff")
    storage.copy_directory(f"{bucket}/tokenizer", tmp_path / "tokenizer", last="spm.model")
    storage.copy_directory(tmp_path / "tokenizer", f"{bucket}/second", last="spm.model")
    assert storage.read_bytes(f"{bucket}/second/spm.model") == b"\x00\xff"
    assert os.listdir(tmp_path) == ["tokenizer"]


def test_text_is_found_by_globs_and_read_as_it_is_compressed(bucket):
    text = secrets.token_hex(1000).encode()
    for name, content in {
        "a.txt": text, "sub/b.txt.gz": gzip.compress(text), "sub/c.txt.xz": lzma.compress(text),
        "sub/deep/d.txt.bz2": bz2.compress(text), "e.json": b"{}",
    }.items():  # fmt: skip
        storage.write(f"{bucket}/text/{name}", content)
    parts = paths.split(f"{bucket}/text/a.txt,{bucket}/text/sub/**/*.txt.*")
    names = [name for part in parts for name in paths.matches(part, part)]
    assert [name.removeprefix(f"{bucket}/text/") for name in names] == [
        "a.txt", "sub/b.txt.gz", "sub/c.txt.xz", "sub/deep/d.txt.bz2",
    ]  # fmt: skip
    for name in names:
        with reading(name) as stream:
            assert stream.read() == text
    for pattern, message in [("text", "is a folder"), ("none.txt", "exist"), ("*.no", "no file")]:
        with pytest.raises(UserError, match=message):
            paths.matches(f"{bucket}/{pattern}", pattern)


@pytest.mark.parametrize("part_bytes", [100, 1 << 20])
def test_metrics_of_several_starts_are_one_stream(folder, monkeypatch, part_bytes):
    monkeypatch.setattr(streams, "_PART_BYTES", part_bytes)
    workdir, session = storage.as_path(folder), 5
    for start in (0, 3, 3):  # the last two lines of the first session come after its checkpoint
        writer = MetricWriter(workdir, start)
        for step in range(start + 1, start + 1 + session):
            writer.write(step, {"train/loss": float(start)})
        writer.close()
    losses = {line["step"]: line["train/loss"] for line in read_metrics(workdir)}
    assert [line["step"] for line in read_metrics(workdir)] == list(range(1, 9))
    assert losses == {step: 3.0 if step > 3 else 0.0 for step in range(1, 9)}
    assert all(path.stat().length for path in storage.children(workdir / "tensorboard"))


def test_a_part_of_a_killed_start_is_no_part_of_the_stream(folder):
    path = f"{folder}/metrics.jsonl"
    stream = streams.restart(path, b"first\n")
    stream.write("second\n")
    stream.close()
    assert streams.read(path) == b"first\nsecond\n"
    storage.write(f"{path}.part-{100:016}", "stale\n")
    assert streams.read(path) == b"first\nsecond\n"
    streams.cut(path, len("first\nsec")).close()
    assert streams.read(path) == b"first\nsec"
    assert len(storage.children(folder)) == 1


def test_damaged_metrics_stay_and_later_ones_go(folder):
    workdir, path = storage.as_path(folder), f"{folder}/metrics.jsonl"
    lines = [b'{"step": 1}\n', b"\xff damaged\n", b'{"step": 2}\n', b'{"step": 3}\n', b'{"st']
    storage.write(path, b"".join(lines))
    MetricWriter(workdir, 2).close()
    assert streams.read(path) == b"".join(lines[:3])
    storage.write(path, b"".join([lines[3], *lines[:3]]))
    MetricWriter(workdir, 2).close()
    assert streams.read(path) == b"".join(lines[:3])


@pytest.mark.parametrize(
    "path, message",
    [
        ("gs://no-such-bucket/a", "gs://no-such-bucket: there is no such bucket"),
        ("s3://no-such-bucket/a", "s3://no-such-bucket: there is no such bucket"),
        ("gs:///a", "the bucket is missing"),
        ("gcs://tests/a", "there is no storage gcs://"),
        ("memory://a", "there is no storage memory://"),
    ],
)
def test_what_is_no_bucket_is_one_line(gcs, s3, path, message):
    with pytest.raises(UserError, match=message) as error:
        storage.user_path(path)
    assert "\n" not in str(error.value)


def test_a_run_is_where_orbax_writes():
    with pytest.raises(UserError, match="a run's directory is a local path, gs:// or s3://"):
        storage.run_path("az://container/run")


class _Refusing(BaseHTTPRequestHandler):
    """Answers as Google's storage does without credentials."""

    def do_GET(self):
        answer = {"error": {"code": 401, "message": "Anonymous caller may not list objects."}}
        body = json.dumps(answer).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_missing_credentials_are_one_line_status_2_and_nothing_is_written(monkeypatch, tmp_path):
    """Every door at once would be a process each; they share `storage.user_path`."""
    filesystem = pytest.importorskip("gcsfs").GCSFileSystem
    server = HTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.chdir(tmp_path)
    filesystem.clear_instance_cache()  # a client remembers where it connected
    try:
        with pytest.raises(UserError) as error:
            deberta_jax.prepare(tiny_recipe.get_config(), "gs://private/run")
    finally:
        filesystem.clear_instance_cache()
        server.shutdown()
    line = str(error.value)
    assert error.value.status == 2 and "\n" not in line and line.startswith("gs://private: ")
    assert "credentials" in line and "Anonymous caller" in line
    assert os.listdir(tmp_path) == []


def test_records_are_read_where_they_were_written(bucket, seed):
    """Of gs:// by ArrayRecord itself, of s3:// from a local copy."""
    draw, length = np.random.default_rng(seed), 8
    rows = {
        split: [
            Sequence(draw.integers(0, 99, length, np.int32), np.ones(length, np.uint16))
            for _ in range(count)
        ]
        for split, count in (("train", 7), ("validation", 2))
    }
    with storage.writing_directory(bucket) as made:
        write_records(os.fspath(made), length, lambda split: iter(rows[split]))
    for split, expected in rows.items():
        source = open_records(bucket, split)
        records = [source[index]["input_ids"].tolist() for index in range(len(source))]
        assert sorted(records) == sorted(row.input_ids.tolist() for row in expected)
    (first, *_) = (file for file in storage.files(f"{bucket}/**") if "train.array_record" in file)
    storage.as_path(first).unlink()
    with pytest.raises(FileNotFoundError):
        open_records(bucket, "train")


def test_a_sweep_in_a_bucket_is_alone_and_keeps_its_logs(gcs, seed):
    workdir = storage.as_path(f"{gcs}/{seed}")
    with claimed(workdir) as lock:
        with pytest.raises(UserError, match="is in use"), claimed(workdir):
            pass
        pool = Pool([Slot()], lock, {"PYTHONHOME": os.devnull})  # no Python starts there
        pool.start("run", workdir / "run", [])
        while not (ended := pool.ended()):
            time.sleep(0.1)
    assert ended == [("run", 1)]
    assert "Fatal Python error" in storage.read_text(workdir / "run/log.txt")
    assert storage.read_text(workdir / "run/failure.txt").startswith("exit status 1\n")
    with pytest.raises(UserError, match="keeps its journal on a disk"):
        search._study(workdir, "tpe", "eval/loss", 0)
