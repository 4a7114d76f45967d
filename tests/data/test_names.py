"""The syntax of columns, labels and lists of paths; what there is under the whole text first."""

import random

import pytest

from deberta_jax.data import names
from deberta_jax.data.formats import paths
from deberta_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "mark", "want"),
    [
        ("a|b", "|", ["a", "b"]),
        (r"a\|b|c", "|", [r"a\|b", "c"]),
        (r"C:\new|b", "|", [r"C:\new", "b"]),
        ("a|", "|", ["a", ""]),
        ("", "|", [""]),
        (r"a\+b+c", "+", [r"a\+b", "c"]),
    ],
)
def test_text_is_cut_at_marks_that_are_not_escaped(text, mark, want):
    assert names.parts(text, mark) == want


def test_an_escaped_name_is_its_only_alternative(seed):
    rng = random.Random(seed)
    for _ in range(500):
        made = ["".join(rng.choices("ab\\|+,= é", k=rng.randint(0, 7))) for _ in range(3)]
        assert names.alternatives("|".join(map(names.escaped, made))) == made


def test_a_comma_in_the_name_of_a_file_parts_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text("x")
    assert paths.split("a,b.txt") == ["a,b.txt"]
    assert paths.split("b.txt, a,b.txt,c.txt") == ["b.txt", "a,b.txt", "c.txt"]
    assert paths.split("b.txt,,c.txt,") == ["b.txt", "c.txt"]
    assert paths.split(r"d\,*.txt,b.txt") == ["d,*.txt", "b.txt"]


def test_a_file_with_the_marks_of_a_glob_is_that_file(tmp_path):
    for name in ("a[1].txt", "a1.txt", "b.txt"):
        (tmp_path / name).write_text("x")
    assert paths.matches(f"{tmp_path}/a[1].txt", "") == [f"{tmp_path}/a[1].txt"]
    assert paths.matches(f"{tmp_path}/[ab]?.txt", "") == [f"{tmp_path}/a1.txt"]
    for path, fault in ((tmp_path, "is a folder"), (f"{tmp_path}/*.md", "matches no file")):
        with pytest.raises(UserError, match=f"it {fault}"):
            paths.matches(str(path), "it")
