"""Rows of named values, from every kind of file and from TFDS."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.data.tasks.sources import Row, named_sources, read_rows
from deberta_jax.data.tasks.tfds_source import _NAMED
from deberta_jax.errors import UserError

SHARED = Path(__file__).parents[4] / "shared" / "data"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_tsv_knows_no_quotes_and_csv_does(tmp_path):
    tsv = write(tmp_path / "a.tsv", 'sentence\tlabel\nhe said "so\t1\n')
    csv = write(tmp_path / "a.csv", 'sentence,label\n"a, ""b""\nc",1\n')
    assert read_rows(tsv)[0].values == {"sentence": 'he said "so', "label": "1"}
    assert read_rows(csv)[0].values == {"sentence": 'a, "b"\nc', "label": "1"}


def test_a_file_without_a_line_of_names_takes_them_from_the_config(tmp_path):
    path = write(tmp_path / "cola.tsv", "gj04\t1\t\tA sentence.\n")
    (row,) = read_rows(path, ("source", "label", "star", "sentence"))
    assert row["sentence"] == "A sentence." and row.where == f"{path}:1"


def test_compressed_json_lines(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "x", "label": 1}\n\n{"text": "y", "label": true}\n'))
    assert [row.values["label"] for row in read_rows(str(path))] == [1, True]


def test_squad_s_file_is_a_row_a_question(tmp_path):
    answers = [{"text": "b", "answer_start": 2}]
    asked = [{"id": "q1", "question": "?", "answers": answers}, {"id": "q2", "question": "!"}]
    data = {"data": [{"title": "t", "paragraphs": [{"context": "a b c", "qas": asked}]}]}
    rows = read_rows(write(tmp_path / "s.json", json.dumps(data)))
    assert [row["id"] for row in rows] == ["q1", "q2"]
    assert rows[0]["context"] == "a b c" and rows[0]["answers"] == answers


def test_conll_s_file_is_a_row_a_sentence(tmp_path):
    text = "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nPeter NNP B-NP B-PER\n"
    rows = read_rows(write(tmp_path / "n.conll", text))
    assert [row["tokens"] for row in rows] == [["EU", "rejects"], ["Peter"]]
    assert [row["tags"] for row in rows] == [["B-ORG", "O"], ["B-PER"]]


def test_race_s_passages_are_a_row_a_question(tmp_path):
    passage = {
        "article": "a",
        "questions": ["q1", "q2"],
        "options": [["w", "x"], ["y", "z"]],
        "answers": ["A", "B"],
    }
    rows = read_rows(write(tmp_path / "r.jsonl", json.dumps(passage)))
    assert [(r["question"], r["choices"], r["label"]) for r in rows] == [
        ("q1", ["w", "x"], "A"),
        ("q2", ["y", "z"], "B"),
    ]


def test_a_column_may_have_either_of_two_names():
    row = Row("here", {"premise": "a"})
    assert row["sentence1|premise"] == "a" and row.get("label") is None
    with pytest.raises(UserError, match="here: no column 'text'; there are: premise"):
        row["text"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "sentence\tlabel\nonly one\n", r"a\.tsv:2: 1 columns; there have to be 2"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: every line has to hold one JSON object"),
        ("a.json", '{"rows": []}', r"no file of SQuAD's form"),
        ("a.conll", "word\n", r"a\.conll:1: it has to hold a word and its tag"),
        ("a.tsv", "sentence\tlabel\n", r"holds no examples"),
        ("a.xml", "<a/>", r"unknown ending; examples are read from \.tsv"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(name, text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_rows(write(tmp_path / name, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.tsv does not exist"):
        read_rows(str(tmp_path / "none.tsv"))


def test_tfds_gives_text_and_names_of_classes(tmp_path, monkeypatch):
    """A data set that is built here, as TFDS builds its own."""
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["bad", "good"]),
                    "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B"])),
                    "answers": tfds.features.Sequence(
                        {"text": tfds.features.Text(), "answer_start": np.int32}
                    ),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            answers = {"text": ["é"], "answer_start": [3]}
            yield 0, {"text": "naïve", "label": "good", "tags": ["B", "O"], "answers": answers}

    monkeypatch.setattr(
        tfds, "builder", lambda name: Tiny(data_dir=tmp_path, file_format="array_record")
    )
    (row,) = read_rows("tfds:tiny:train")
    assert row.values["text"] == "naïve" and row.values["label"] == "good"
    assert row.values["tags"] == ["B", "O"]
    assert row.values["answers"] == {"text": ["é"], "answer_start": [3]}


@pytest.mark.skipif(not SHARED.exists(), reason="the development data are not here")
def test_mctest_s_stories_have_four_questions_of_four_choices():
    rows = read_rows(str(SHARED / "mctest" / "mc500.dev.tsv"))
    assert len(rows) == 4 * 50
    assert rows[0]["label"] == "A" and rows[0]["choices"][0] == "Friday"
    assert rows[0]["question"].startswith("If the rain") and "\\newline" not in rows[0]["context"]


@pytest.mark.parametrize(
    ("source", "name", "split"),
    [
        ("glue/sst2:train", "glue/sst2", "train"),
        ("glue/sst2:train[:10%]", "glue/sst2", "train[:10%]"),
        ("glue/sst2:2.0.0:train[5:9]+test", "glue/sst2:2.0.0", "train[5:9]+test"),
        ("glue/sst2:1.*.*:train", "glue/sst2:1.*.*", "train"),
    ],
)
def test_a_tfds_source_is_a_name_and_a_split(source, name, split):
    assert _NAMED.fullmatch(source).groups() == (name, split)


@pytest.mark.parametrize("source", ["tfds:glue", "tfds::train", "tfds:glue:"])
def test_a_tfds_source_without_a_split_is_refused(source):
    with pytest.raises(UserError, match=f"^{source}: it has to be tfds:NAME:SPLIT"):
        read_rows(source)


def test_sets_have_names_and_files_may_hold_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("split=dev/a.csv", "a=b.csv", "b.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    for source, want in {
        "split=dev/a.csv": ("", "split=dev/a.csv"),
        "a=b.csv": ("", "a=b.csv"),
        "dev=a=b.csv": ("dev", "a=b.csv"),
        "dev=b.csv": ("dev", "b.csv"),
        "dev=*.csv": ("dev", "*.csv"),
        "b.csv": ("", "b.csv"),
        "dev=tfds:glue/rte:test": ("dev", "tfds:glue/rte:test"),
        "tfds:glue/rte:test": ("", "tfds:glue/rte:test"),
        "x/y=none.csv": ("", "x/y=none.csv"),
    }.items():
        assert named_sources([source], "task.test") == [want]
    assert [name for name, _ in named_sources(["m=a=b.csv", "n=b.csv"], "task.test")] == ["m", "n"]
    for faulty in (["b.csv", "n=b.csv"], ["n=b.csv", "n=a=b.csv"]):
        with pytest.raises(UserError, match=r"^task\.test has 2 sources; each needs a name"):
            named_sources(faulty, "task.test")
    message = "^split=none.csv does not exist, nor does none.csv, of a set that is named split"
    with pytest.raises(UserError, match=message):
        named_sources(["split=none.csv"], "task.test")
