"""Recipes by name and by path."""

from pathlib import Path

import pytest

from deberta_jax import recipes, schema
from deberta_jax.configs import quickstart
from deberta_jax.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"


def test_every_recipe_has_a_name_and_other_modules_have_none():
    names = recipes.names()
    assert {"quickstart", "finetune/sst2", "sweeps/ablation"} <= set(names)
    assert "finetune/settings" not in names
    assert all((CONFIGS / f"{name}.py").samefile(recipes.find(name)) for name in names)


@pytest.mark.parametrize("text", ["finetune/sst2:large", "sweeps/ablation:tiny"])
def test_what_follows_a_colon_is_not_part_of_the_name(text):
    name, _, argument = text.partition(":")
    assert recipes.find(text) == recipes.find(name)
    assert recipes.load(text) == recipes.load(name, argument) != recipes.load(name)


def test_a_file_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = "from deberta_jax import recipes\ndef get_config():\n    config = recipes.load('{}')\n"
    own += "    config.seed = 7\n    return config\n"
    (tmp_path / "my.py").write_text(own.format("quickstart"))
    assert recipes.load("my.py").seed == recipes.load("./my.py").seed == 7
    assert recipes.load("quickstart").seed == 0
    (tmp_path / "quickstart").write_text("def get_config():\n    raise AssertionError\n")
    assert recipes.find("quickstart") == Path("quickstart")


def test_loaded_configs_are_those_of_the_module_and_locked():
    config = recipes.load("quickstart")
    assert schema.freeze(config) == schema.freeze(quickstart.get_config())
    with pytest.raises(AttributeError):
        config.no_such_field = 3


def test_a_colon_in_a_path_is_said(tmp_path):
    (tmp_path / "my:recipe.py").write_text("def get_config():\n    raise AssertionError\n")
    with pytest.raises(UserError, match=r"my:recipe\.py: what follows a colon is a recipe's arg"):
        recipes.find(f"{tmp_path}/my:recipe.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quikstart", "quikstart: there is no such recipe or file; the nearest recipes are quick"),
        ("sst2", "finetune/sst2"),
        ("finetune/settings", "there is no such recipe"),
        ("my.py", "my.py: there is no such file"),
        ("configs/quickstart.py", "there is no such file; the recipe has the name quickstart"),
        ("", "there is no such recipe"),
    ],
)
def test_an_unknown_recipe_is_one_line_with_the_nearest_names(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        recipes.find(text)
    assert "\n" not in str(error.value)
