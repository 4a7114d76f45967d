"""What `score` reads: text, JSONL, minimal pairs, TFDS; and what is wrong with a file."""

import gzip
import json

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.blimp import blimp_dataset_builder as blimp

from deberta_jax.errors import UserError
from deberta_jax.evaluation.sentence_files import read_items

PAIRS = [
    {"sentence_good": "These casseroles disgust Kayla.", "sentence_bad": "This casseroles."},
    {"sentence_good": "Él dijo la verdad.", "sentence_bad": "Él dijeron.", "UID": "agreement"},
]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_text_and_json_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne sentence.\r\n\nAnother.")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"s": "Third."}\n\n{"s": ""}\n')
    found = read_items(f"{tmp_path}/*.txt, {tmp_path}/b.jsonl.gz", "s")
    assert [(item.number, *item.sentences) for item in found] == [
        (1, "One sentence."), (2, ""), (3, "Another."), (1, "Third."), (3, ""),
    ]  # fmt: skip
    assert found[0].source.endswith("a.txt") and found[-1].group == "b"


def test_json_lists_hostile_lines_and_commas_in_names(tmp_path):
    (tmp_path / "a,b.json").write_text(json.dumps(PAIRS, indent=1))
    line = json.dumps({"text": "one\u2028\x85two"}, ensure_ascii=False) + "\n"
    (tmp_path / "c.JSONL").write_text(line, encoding="utf-8")
    (tmp_path / "d.txt").write_text("x\u2028y\x0cz\n", encoding="utf-8")
    found = read_items(f"{tmp_path}/a,b.json,{tmp_path}/c.JSONL,{tmp_path}/d.txt", "text")
    assert [item.sentences for item in found[:2]] == [tuple(pair.values())[:2] for pair in PAIRS]
    assert [item.sentences for item in found[2:]] == [("one\u2028\x85two",), ("x\u2028y\x0cz",)]


def test_minimal_pairs_are_grouped_by_uid_or_else_by_file(tmp_path):
    found = read_items(write(tmp_path / "pairs.jsonl", PAIRS), "text")
    assert [item.group for item in found] == ["pairs", "agreement"]
    assert found[1].sentences == ("Él dijo la verdad.", "Él dijeron.")


class Local(blimp.Builder, skip_registration=True):
    """BLiMP's own builder, on two pairs that are at hand instead of the network's thousands."""

    name = "blimp"
    pkg_dir_path = None

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(None)}

    def _generate_examples(self, filepath):
        flags = ("simple_LM_method", "one_prefix_method", "two_prefix_method")
        flags = dict.fromkeys((*flags, "lexically_identical"), True)
        for number, pair in enumerate(PAIRS):
            rest = {"field": "syntax", "linguistics_term": "agreement", "pair_id": number}
            yield number, {**flags, **rest, **pair, "UID": self.builder_config.name}


def test_blimp_by_name_from_data_at_hand(tmp_path):
    Local(
        config="adjunct_island", data_dir=tmp_path, file_format="array_record"
    ).download_and_prepare()
    found = read_items("tfds:blimp/adjunct_island", "text", str(tmp_path))
    assert sorted(item.sentences for item in found) == sorted(
        (pair["sentence_good"], pair["sentence_bad"]) for pair in PAIRS
    )
    assert {(item.source, item.group) for item in found} == {
        ("tfds:blimp/adjunct_island", "adjunct_island")
    }
    assert len(tfds.builder_cls("blimp").builder_configs) == 67  # what "tfds:blimp" would read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"sentence_good": "a"}',
            r"x\.jsonl:1: no field 'sentence_bad'; there are: sentence_good",
        ),
        ('{"sentence_bad": "a"}', r"x\.jsonl:1: no field 'sentence_good'"),
        ('{"text": "a"}\n{"txt": "b"}', r"x\.jsonl:2: no field 'text'; there are: txt"),
        ('{"text": 3}', r"x\.jsonl:1: field 'text' holds 3, not a string"),
        ('["a"]', r"x\.jsonl:1: a JSON list"),
        ("{", r"x\.jsonl:1: not JSON"),
        ('{"text": "a", "text": "b"}', r"x\.jsonl:1: not JSON \(the name 'text' is there twice\)"),
        ('{"text": "\\ud83d"}', r"x\.jsonl:1: 'text' holds half a character \(\\ud83d\)"),
        ('{"text": "a", "UID": null}', r"x\.jsonl:1: field 'UID' holds None, not a name"),
        ("\n", "holds no sentences"),
        (b"\xff", r"x\.jsonl:1: not UTF-8"),
    ],
)
def test_a_fault_is_named_with_its_line(content, message, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_items(str(path), "text")


@pytest.mark.parametrize("name", ["/no/such.txt", "tfds:no_such_dataset", "x.pdf"])
def test_what_is_not_there_is_named(name, tmp_path):
    (tmp_path / "x.pdf").touch()
    with pytest.raises(UserError, match=name.removesuffix(".txt")):
        read_items(name.replace("x.pdf", f"{tmp_path}/x.pdf"), "text", str(tmp_path))
