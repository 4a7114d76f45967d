"""Every command and every Python block of the documentation is run, or says why it is not.

A block that is not run here has a comment directly before it: `<!-- not run: REASON -->`, or
`<!-- run by tests/FILE.py::TEST -->`. All others run in order, page by page, each page in a
directory of its own that looks like a checkout. The commands run as they are written; what is
appended makes their models, data and durations those of `tests/tiny_recipe.py`. Sweeps are run
with --only=check, launchers with --dry-run. A Python block that begins with `# NAME.py` is written
to that file.
"""

import csv
import gzip
import json
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deberta_jax import schema
from deberta_jax.preparation.corpora import corpus_files
from tests import tiny_recipe
from tests.docs.blocks import PAGES, ROOT, SHELL, SHOWN, outside_blocks, read_blocks

LAUNCHERS = ("gke.sh", "sky.sh", "slurm.sh", "tpu_vm.sh")
# A fork of a process that has imported all of this starts at once.
PRELOADED = [
    "tests.docs.test_commands",
    "deberta_jax.api",
    "deberta_jax.runs.scoring",
    "deberta_jax.report.metric_panels",
    "matplotlib.backends.backend_agg",
    "tensorboardX",
    "transformers.models.auto.modeling_auto",
    "transformers.models.deberta_v2.modeling_deberta_v2",
]


def tiny_fields() -> dict[str, object]:
    """What makes any recipe tiny, by the dotted names of its fields."""
    tiny = schema.flatten(schema.freeze(tiny_recipe.get_config()))
    fields = {n: v for n, v in tiny.items() if v != schema.flatten(schema.Config())[n]}
    return fields | {"train.duration": "3 steps", "train.checkpoint_every": "0"}


TINY = tiny_fields()
TINY_TASK = {
    "task.train": "train.csv",
    "task.validation": "('dev.csv',)",
    "task.texts": "('title','body')",
    "task.label": "category",
    "task.labels": "('0','1')",
    "task.max_length": 32,
    "task.buckets": 1,
    "optimizer.warmup": "10%",
    "train.duration": "2 steps",
    "train.batch_size": 8,
}


def appended(verb: str, arguments: list[str]) -> list[str]:
    """The flags that make a command cheap; what it sets itself stays."""
    recipe = [word for word in arguments if re.match("--(config|sweep)=", word)]
    if not recipe or verb == "config":
        return []
    fields = TINY_TASK if verb == "finetune" else TINY
    own = {word.removeprefix("--config.").split("=")[0] for word in arguments}
    flags = [f"--config.{name}={value}" for name, value in fields.items() if name not in own]
    if verb == "sweep" and not re.search("--(only|launch)=", " ".join(arguments)):
        flags.append("--only=check")
    return flags


def run_verb(arguments, environment, log):
    """In a process of its own: the `deberta-jax` command."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    sys.argv = ["deberta-jax", *arguments]
    from deberta_jax.__main__ import main

    main()


def run_file(path, log):
    """In a process of its own: a Python block; a recipe is read too."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.path.insert(0, os.getcwd())
    space = runpy.run_path(path)
    if "get_config" in space:
        schema.freeze(space["get_config"]())


def in_directory(directory, target, *arguments):
    os.chdir(directory)
    target(*arguments)


def in_process(directory, where, target, *arguments):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    log = directory / "output.txt"
    process = context.Process(target=in_directory, args=(directory, target, *arguments, log))
    process.start()
    process.join(300)
    process.kill()
    assert process.exitcode == 0, f"{where}: {arguments} ends with {process.exitcode}\n" + (
        log.read_text() if log.exists() else ""
    )


def run_command(directory: Path, where: str, words: list[str]) -> None:
    environment = {}
    while match := re.fullmatch(r"([A-Z_]+)=(.*)", words[0]):
        environment[match[1]] = f"{os.environ.get(match[1], '')} {match[2]}".strip()
        words = words[1:]
    if words[:2] == ["python", "-m"] and words[2].startswith("deberta_jax."):
        words = ["deberta-jax", words[2].removeprefix("deberta_jax."), *words[3:]]
    if words[0] == "deberta-jax":
        verb, arguments = words[1], words[2:]
        arguments = [re.sub(r"^(--launch=.*)", r"\1 --dry-run", word) for word in arguments]
        arguments += appended(verb, arguments)
        in_process(directory, where, run_verb, [verb, *arguments], environment)
        return
    if words[0] == "eval":  # eval "$(bash launch/...)"
        words = shlex.split(words[1].removeprefix("$(").removesuffix(")"))
    assert words[0] == "bash" and words[1].startswith("launch/"), (
        f"{where}: {words[0]!r} is no command that the tests can run: mark the block"
    )
    dry = ["--dry-run"] if Path(words[1]).name in LAUNCHERS else []
    done = subprocess.run(
        [*words, *dry], cwd=directory, capture_output=True, text=True, timeout=60,
        stdin=subprocess.DEVNULL, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout and not done.stderr, f"{where}: {done.stderr}"


def run_python(directory: Path, where: str, text: str) -> None:
    named = re.match(r"# ([\w/]+\.py)\n", text)
    path = directory / (named[1] if named else "block.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    in_process(directory, where, run_file, str(path))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What pages start from: recipes, launchers, text, examples, and the run of the tour."""
    directory = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "launch"):
        (directory / name).symlink_to(ROOT / name)
    documents = [Path(path).read_text() for path in corpus_files(TINY["data.corpus"])]
    for folder in ("text", "pairs"):
        (directory / folder).mkdir()
    with gzip.open(directory / "text" / "plays.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    pair = {"sentence_good": "I know thee well.", "sentence_bad": "I knows thee well."}
    (directory / "pairs" / "agreement.jsonl").write_text(json.dumps(pair) + "\n")
    lines = [line.strip() for line in documents[0].splitlines() if 20 < len(line) < 60]
    for name, rows in (("train", lines[:48]), ("dev", lines[48:64])):
        with open(directory / f"{name}.csv", "w", newline="") as file:
            examples = [(i % 2, "Title", line) for i, line in enumerate(rows)]
            csv.writer(file).writerows([("category", "title", "body"), *examples])
    for words in read_blocks("docs/tour.md")[0].commands:
        run_command(directory, "docs/tour.md", words)
    return directory


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_run_or_says_why_not(name):
    for block in read_blocks(name):
        assert block.language in ("python", *SHELL, *SHOWN), f"{block.where}: name its language"
        if block.mark:
            assert block.language in ("python", *SHELL), f"{block.where} is not run in any case"
        if block.mark == "not run:":
            assert len(block.reason.split()) >= 3, f"{block.where}: say why it is not run"
        elif block.mark == "run by":
            path, _, test = block.reason.partition("::")
            source = (ROOT / path).read_text()
            assert path.startswith("tests/") and f"\ndef {test}(" in source, block.where
    # A command in an indented block, or one with a mark that is misspelt, would never be seen.
    text = outside_blocks(name)
    assert not re.findall(r"^ +```.*|^ {4,}(?:python|bash|deberta-jax|pip|\$) .*", text, re.M)
    marks = [block for block in read_blocks(name) if block.mark]
    assert text.count("<!-- not run") + text.count("<!-- run by") == len(marks)


def runnable(name):
    """The blocks of a page that are run here."""
    blocks = [block for block in read_blocks(name) if not block.mark]
    return [block for block in blocks if block.language in ("python", *SHELL)]


@pytest.mark.slow(minutes=0.1)
@pytest.mark.parametrize("name", filter(runnable, PAGES))
def test_what_a_page_tells_to_run_runs(name, checkout, tmp_path):
    directory = tmp_path / "checkout"
    shutil.copytree(checkout, directory, symlinks=True)
    for block in runnable(name):
        if block.language == "python":
            run_python(directory, block.where, block.text)
        for words in block.commands if block.language in SHELL else ():
            run_command(directory, block.where, words)
