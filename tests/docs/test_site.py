"""The documentation as a site: it builds without a warning, and its formulas and API are in it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deberta_jax import recipes, schema

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return out


def test_every_page_is_built_and_reached_from_the_navigation(site):
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        name = page.relative_to(ROOT / "docs").as_posix()
        assert f": {name}" in navigation, name
        folder = site if name == "index.md" else site / name.removesuffix(".md")
        assert (folder / "index.html").stat().st_size > 5000, name


def test_formulas_are_drawn_by_the_browser(site):
    page = (site / "mathematics" / "index.html").read_text()
    assert page.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') >= 3
    assert "<mfrac>" in page and "arithmatex" not in page and "$$" not in page


def test_the_reference_is_made_of_the_docstrings(site):
    page = (site / "reference" / "api" / "index.html").read_text()
    for function in ("prepare", "train", "finetune", "evaluate", "export"):
        assert f'id="deberta_jax.api.{function}"' in page
    assert "fields of" not in page and "eval/loss" in page


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_page_names_is_there(name):
    """Files, recipes, config fields, and links to other files of the project."""
    text = TEXTS[name]
    fields = set(schema.flatten(schema.Config()))
    for field in re.findall(r"--config\.([a-z_.0-9]+[a-z_0-9])(?==|\b)", text):
        assert (
            field in fields
            or any(known.startswith(f"{field}.") for known in fields)
            or (field in ("a.b", "data"))
        ), field
    for recipe in re.findall(r"--config=([\w/]+?)(?:\.py)?[:`'\s]", text):
        known = {*recipes.names(), "FILE", "RECIPE", "my_recipe", "recipe", "my_task", "CONFIG"}
        assert recipe.removeprefix("configs/") in known, recipe
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        base = (ROOT / name).parent
        assert (base / target).exists(), target
    for path in re.findall(
        r"`((?:deberta_jax|configs|launch|tests|benchmarks)/[a-z_0-9./]+\.\w+)`", text
    ):
        assert (ROOT / path).exists(), path
