"""One command for every verb, and the mistakes of its command line."""

import subprocess
import sys
from pathlib import Path

import pytest

import deberta_jax
from deberta_jax.__main__ import VERBS


def run(*arguments, module="deberta_jax", cwd=None):
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def the_error(done) -> str:
    assert done.returncode == 2 and done.stdout == "", done
    (line,) = done.stderr.splitlines()
    return line.removeprefix("error: ")


def test_help_lists_every_verb_with_its_purpose():
    done = run("--help")
    assert done.returncode == 0, done.stderr
    listed = [line.split(None, 1) for line in done.stdout.splitlines()[2:]]
    assert [verb for verb, _ in listed] == list(VERBS)
    assert all(purpose[0].isupper() and "python -m" not in purpose for _, purpose in listed)
    # Every module that can be run is one of them.
    sources = Path(deberta_jax.__file__).parent.glob("*.py")
    runnable = {path.stem for path in sources if "command.run(" in path.read_text()}
    assert runnable == set(VERBS)


def test_version():
    assert run("--version").stdout.split() == ["deberta_jax", deberta_jax.__version__]


@pytest.mark.parametrize(("words", "message"), [(["trian"], "'train'"), ([], "verb is missing")])
def test_an_unknown_verb_is_one_line(words, message):
    assert message in the_error(run(*words))


def test_a_verb_runs_as_its_module_does(tmp_path):
    recipe = "--config=finetune/sst2:large"
    one = run("config", recipe, cwd=tmp_path)
    other = run(recipe, module="deberta_jax.config", cwd=tmp_path)
    assert one.returncode == other.returncode == 0, one.stderr
    assert one.stdout == other.stdout and "tfds:glue/sst2:train" in one.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--config.train.batch_size=3", "--config=quickstart"],
            "--config.train.batch_size=3 comes before --config; overrides have to follow",
        ),
        (["--config=quikstart"], "--config=quikstart: there is no such recipe or file"),
        (["--config", "quikstart"], "--config=quikstart: there is no such recipe or file"),
        (["--config=quickstart:large"], "=quickstart:large: the recipe takes no argument"),
    ],
)
def test_a_mistake_about_the_recipe_is_one_line(words, message):
    assert message in the_error(run("config", *words))


def test_help_of_a_verb_lists_its_flags():
    lines = run("prepare", "--help").stdout.splitlines()
    listed = {line.split()[0].rstrip(":") for line in lines if line.startswith("  --")}
    assert {"--config", "--workdir", "--[no]overwrite"} <= listed
