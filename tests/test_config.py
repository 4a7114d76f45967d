"""The schema, the recipes, and what a person sees who mistypes one."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from deberta_jax import migrations, schema, storage
from deberta_jax.errors import UserError

ROOT = Path(__file__).parents[1]
QUICKSTART = "configs/quickstart.py"
RECIPES = sorted(
    path for path in (ROOT / "configs").rglob("*.py") if "def get_config(" in path.read_text()
)


def recipe(path):
    space = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    return space["get_config"]()


def changed(**sections):
    """The default config with changes: `changed(model=dict(hidden_size=24), seed=3)`."""
    config = schema.default()
    for name, value in sections.items():
        if isinstance(value, dict):
            config[name].update(value)
        else:
            config[name] = value
    return schema.freeze(config)


def test_every_field_has_a_comment():
    comments = schema.comments()
    for name in schema.flatten(schema.Config()):
        assert len(comments.get(name, "")) > 10, name


def test_the_defaults_freeze_into_themselves():
    assert schema.freeze(schema.default()) == schema.Config()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipes_load_freeze_and_are_locked(path):
    config = recipe(path)
    frozen = schema.freeze(config)
    assert schema.differences(schema.Config(), frozen), "a recipe that changes nothing"
    assert config.is_locked and config.model.is_locked
    with pytest.raises(AttributeError, match="hidden_size"):
        config.model.hiden_size = 3
    with pytest.raises(TypeError):
        config.train.batch_size = "many"


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        schema.Config().model.hidden_size = 3


def test_every_default_is_saved_and_loaded(tmp_path):
    schema.save(schema.Config(), tmp_path / "config.json")
    assert schema.load(tmp_path / "config.json") == schema.Config()


def test_the_items_of_a_list_have_the_type_of_its_default(tmp_path):
    path = tmp_path / "config.json"
    for field, value in (("thresholds", ["0.5"]), ("labels", [1]), ("scores", "f1")):
        storage.write_json(path, {"version": migrations.CONFIG_VERSION, "task": {field: value}})
        with pytest.raises(UserError, match=rf"task\.{field} is .*; it must be of type tuple"):
            schema.load(path)


def test_what_is_saved_is_loaded(tmp_path):
    config = changed(model=dict(pos_att_type=("c2p",), hidden_size=24, vocab_size=99), seed=7)
    schema.save(config, tmp_path / "config.json")
    assert schema.load(tmp_path / "config.json") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_file_cut_short_is_an_error_that_names_it(share, tmp_path):
    path = tmp_path / "config.json"
    schema.save(schema.Config(), path)
    path.write_text(path.read_text()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        schema.load(path)


def test_differences_are_listed_field_by_field():
    new = changed(model=dict(hidden_size=24, num_attention_heads=2), train=dict(batch_size=4))
    assert schema.differences(schema.Config(), new) == [
        "model.hidden_size: 768 -> 24",
        "model.num_attention_heads: 12 -> 2",
        "train.batch_size: 256 -> 4",
    ]
    assert schema.differences(schema.Config(), new, "train.") == ["train.batch_size: 256 -> 4"]
    assert not schema.differences(new, new)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "deberta_jax.config", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def the_error(result):
    """The one line of a user's mistake, without its "error: "."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_the_command_lists_every_field_with_its_value():
    result = command(f"--config={QUICKSTART}", "--config.model.num_hidden_layers=9")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    for name, value in schema.flatten(schema.freeze(recipe(ROOT / QUICKSTART))).items():
        value = 9 if name == "model.num_hidden_layers" else value
        assert any(line.split(None, 1) == [name, repr(value)] for line in lines), name


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("--config.model.hiden_size=3", ["no field 'model.hiden_size'", "'model.hidden_size'"]),
        ("--config.trian.batch_size=3", ["no field 'trian.batch_size'", "'train.batch_size'"]),
        ("--config.train.batch_size=many", ["config.train.batch_size=many", "type int"]),
        ("--config.train.batch_size=2.5", ["config.train.batch_size=2.5", "type int"]),
        ("--config.model.hidden_size=65", ["model.hidden_size 65", "model.num_attention_heads 2"]),
        ("--config.compute.dtype=float64", ["compute.dtype is 'float64'", "'bfloat16'"]),
        ("--learning_rate=3", ["learning_rate"]),
        ("learning_rate=3", ["'learning_rate=3' is no flag"]),
    ],
)
def test_a_mistyped_override_is_one_line_that_says_what_is_right(override, parts):
    error = the_error(command(f"--config={QUICKSTART}", override))
    for part in parts:
        assert part in error, error


def test_a_missing_recipe_is_one_line():
    assert "--config is missing" in the_error(command())
    assert the_error(command("--config=configs/no.py")) == (
        "--config=configs/no.py: there is no such file"
    )


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("config.train.durations = '3'", ["recipe.py:5", "duration"]),
        ("config.train.batch_size = '3'", ["recipe.py:5", "int"]),
        ("return 1 / 0", ["recipe.py:5", "division by zero"]),
        ("config.train.batch_size = = 3", ["recipe.py", "line 5", "invalid syntax"]),
        ("open('no such file')", ["recipe.py:5", "No such file"]),
    ],
)
def test_an_error_inside_a_recipe_is_one_line_that_names_its_place(line, parts, tmp_path):
    text = "from deberta_jax import config as schema\n\ndef get_config():\n"
    text += f"    config = schema.default()\n    {line}\n    return config\n"
    (tmp_path / "recipe.py").write_text(text)
    error = the_error(command(f"--config={tmp_path}/recipe.py"))
    for part in parts:
        assert part in error, error
