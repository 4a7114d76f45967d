"""Every verb on every kind of directory: taken, or refused in one line that says what is there."""

import dataclasses
import json
import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

import deberta_jax
from deberta_jax import plot, schema, score
from deberta_jax.errors import UserError
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.runs import directories, evaluating, exporting, pretraining
from deberta_jax.runs.converting import convert
from tests.model import small

RUN = Path(__file__).parents[1] / "formats" / "v2"
CONFIG = json.loads((RUN / "config.json").read_text())


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def make_finetuned(path, init, finished):
    config = CONFIG | {"objective": "classification", "train": CONFIG["train"] | {"init": init}}
    write(path / "config.json", config)
    write(path / "checkpoints" / "3" / "commit_success.txt")
    if finished:
        write(path / "results.json", {"step": 3, "scores": {"eval/accuracy": 0.75}})


def make_task(path, init, finished):
    for seed in range(2):
        make_finetuned(path / f"seed_{seed}", init, finished)
    if finished:
        scores = {"eval/accuracy": {"mean": 0.75, "std": 0.0, "median": 0.75}}
        write(path / "results.json", {"task": "rte", "summary": scores, "seeds": {"0": {}}})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A directory of each kind, by name; not to be changed."""
    root = tmp_path_factory.mktemp("d")
    config = small.variant(num_hidden_layers=1, vocab_size=64)
    model, params = DebertaForMaskedLM(config), small.random_params(config, 0)
    tokenizer = deberta_jax.load_tokenizer(RUN / "tokenizer")
    deberta_jax.save_pretrained(root / "transformers", model, params, tokenizer=tokenizer)
    for layout in ("microsoft", "orbax"):
        convert(root / "transformers", root / layout, layout)
    init = str(root / "transformers")
    shutil.copytree(RUN, root / "run")
    make_finetuned(root / "finetuned", init, True)
    make_finetuned(root / "unfinished", init, False)
    make_task(root / "seeds", init, True)
    make_task(root / "unfinished seeds", init, False)
    make_task(root / "tasks" / "rte", init, True)
    write(root / "started" / "config.json", CONFIG)
    write(root / "sweep" / "runs" / "a" / "config.json", CONFIG)
    shutil.copytree(RUN / "data", root / "data")
    shutil.copytree(RUN / "data", root / "workdir" / "data")
    shutil.copytree(RUN / "tokenizer", root / "tokenizer")
    for part in ("generator", "discriminator"):
        shutil.copytree(root / "transformers", root / "pair" / part)
    shutil.copytree(root / "microsoft", root / "published pair")
    shutil.copy(
        root / "microsoft" / "pytorch_model.bin",
        root / "published pair" / "pytorch_model.generator.bin",
    )
    write(root / "step files" / "pytorch.model-000100.bin")
    shutil.copytree(root / "transformers", root / "hub" / "snapshots" / "0abc")
    write(root / "other" / "notes.txt")
    write(root / "file")
    (root / "empty").mkdir()
    here = os.getcwd()
    os.chdir(root)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    os.chdir(here)
    return root


# What each directory is called in the line that refuses it.
KINDS = {
    "missing": "no directory",
    "empty": "is empty",
    "file": "is a file",
    "socket": "is a socket",
    "run": "is a pre-training run (step 6)",
    "finetuned": "is a fine-tuned run (step 3)",
    "unfinished": "is a fine-tuned run that has not finished (step 3)",
    "seeds": "fine-tuned runs (seed_0, seed_1)",
    "unfinished seeds": "fine-tuned runs (seed_0, seed_1)",
    "tasks": "is results of fine-tuning (rte)",
    "started": "is a run without a checkpoint",
    "sweep": "is a sweep of 1 runs",
    "run/checkpoints": "is the checkpoints of a run",
    "run/checkpoints/6": "is one checkpoint of a run",
    "transformers": "is a checkpoint in transformers' layout",
    "microsoft": "is a checkpoint in a torch layout",
    "orbax": "is a checkpoint in Orbax's layout",
    "published pair": "is a checkpoint in a torch layout",
    "pair": "is the two models of replaced-token detection",
    "step files": "is files of Microsoft's training (pytorch.model-000100.bin)",
    "workdir": "is a workdir whose data is prepared, without a run",
    "data": "is prepared data",
    "tokenizer": "is a tokenizer",
    "hub": "is a directory of other files (snapshots)",
    "other": "is a directory of other files (notes.txt)",
}
CHECKPOINTS = {"transformers", "microsoft", "orbax", "published pair"}
READ = {"run", "finetuned", "unfinished"} | CHECKPOINTS
NEW = {"missing", "empty"}
OTHERS = {"tokenizer", "hub", "other"}


def config_of(**sections):
    config = schema.load(RUN / "config.json")
    for name, values in {"data": {"dir": str(RUN / "data")}, **sections}.items():
        section = dataclasses.replace(getattr(config, name), **values)
        config = dataclasses.replace(config, **{name: section})
    return config


def train_from(objective):
    def begin(path, out):
        config = dataclasses.replace(config_of(train={"init": str(path)}), objective=objective)
        deberta_jax.train(config, out)

    return begin


def finetuning():
    task = dict(train="a.csv", validation=("a.csv",))
    return dataclasses.replace(config_of(task=task), objective="classification")


def finetune_into(path, out):
    deberta_jax.finetune(finetuning(), path, init=RUN)


class Flags(SimpleNamespace):
    """Flags as absl has parsed them."""

    def __getitem__(self, name):
        return SimpleNamespace(value=getattr(self, name, None))


def plotting(what, flag):
    def draw(path, out):
        flags = dict(layer="", head="all", parts=None, emd=0, label=None, metric=None)
        picture = out.with_name("out.png")
        picture.parent.mkdir(exist_ok=True)
        flags |= {"what": what, "out": str(picture), "sentence": "a", flag: [str(path)]}
        plot.main(Flags(**flags))

    return draw


def scoring(path, out):
    write(out.with_name("a.txt"), "one\n")
    flags = dict(checkpoint=str(path), input=str(out.with_name("a.txt")), text_field="text")
    flags |= dict(out=str(out.with_name("out.jsonl")), tfds_dir="", method="auto", dtype="float32")
    score.main(Flags(**flags, batch_tokens=64))


# By verb: what calls it with a directory, the key of the gate, and what it takes.
VERBS = {
    "evaluate": (
        lambda path, out: evaluating.evaluate(path, 0),
        {"run", "finetuned", "seeds", "tasks"},
    ),
    "score": (scoring, {"run"} | CHECKPOINTS),
    "export": (exporting.export, {"run", "finetuned", "unfinished"}),
    "export --onnx": (lambda path, out: exporting.export(path, out, onnx=True), READ),
    "convert": (convert, READ),
    "finetune": (lambda path, out: deberta_jax.finetune(finetuning(), out, init=path), READ),
    "train.init": (train_from("mlm"), {"run"} | CHECKPOINTS),
    "train.init of rtd": (
        train_from("rtd"),
        {"run", "pair", "step files", "file"} | CHECKPOINTS,
    ),
    "plot attention": (plotting("attention", "checkpoint"), READ),
    "plot profiles": (plotting("profiles", "checkpoint"), READ),
    "plot curves": (plotting("curves", "workdir"), READ - CHECKPOINTS | {"started"}),
    "plot norms": (plotting("norms", "workdir"), READ - CHECKPOINTS | {"started"}),
    "load_pretrained": (lambda path, out: deberta_jax.load_pretrained(path), READ),
    "api.evaluate": (lambda path, out: deberta_jax.evaluate(path), {"run"}),
    "data.dir": (
        lambda path, out: pretraining.load_data(config_of(data={"dir": str(path)}), out),
        {"data"},
    ),
    "train": (
        lambda path, out: deberta_jax.train(config_of(), path),
        NEW | OTHERS | {"run", "started", "workdir"},
    ),
    "finetune --workdir": (finetune_into, NEW | OTHERS | {"seeds", "unfinished seeds", "tasks"}),
    "prepare": (
        lambda path, out: deberta_jax.prepare(config_of(data={"dir": str(path)}), out),
        NEW | OTHERS | {"data"},
    ),
    "export --out": (
        lambda path, out: exporting.export(RUN, path),
        NEW | OTHERS | CHECKPOINTS | {"pair"},
    ),
    "convert --to": (lambda path, out: convert(RUN, path), NEW),
    "save_pretrained": (
        lambda path, out: deberta_jax.save_pretrained(path, None, None),
        NEW | OTHERS | CHECKPOINTS | {"pair"},
    ),
}
# Of what is taken, what is cheap enough to go through with; tests of the verbs do the rest.
CARRIED_OUT = {
    ("evaluate", "finetuned"),
    ("evaluate", "seeds"),
    ("evaluate", "tasks"),
    ("export", "run"),
    ("convert", "run"),
    ("convert", "orbax"),
    ("convert", "published pair"),
    ("load_pretrained", "microsoft"),
    ("data.dir", "data"),
    ("plot curves", "run"),
}


def contents(root):
    return {path: path.lstat().st_mtime_ns for path in root.rglob("*")}


def test_the_matrix_has_every_use_of_a_directory():
    assert VERBS.keys() == directories.READS.keys() | directories.WRITES.keys()


def test_the_page_says_what_the_gate_does():
    page = (Path(__file__).parents[2] / "docs" / "directories.md").read_text()
    for kind in directories.Kind:
        cells = [
            ", ".join(f"`{name}`" for name, use in uses.items() if kind in use.takes)
            for uses in (directories.READS, directories.WRITES)
        ]
        assert f"\n| {kind.value} | {cells[0]} | {cells[1]} |\n" in page, kind


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", KINDS)
def test_every_verb_on_every_kind_of_directory(root, tmp_path, verb, name):
    call, taken = VERBS[verb]
    path, out = root / name, tmp_path / "new" / "out"
    before = contents(root)
    if (verb, name) in CARRIED_OUT:
        call(path, out)
    elif name in taken:
        use = directories.require if verb in directories.READS else directories.require_writable
        assert use(path, verb).path == path
    else:
        with pytest.raises(UserError) as error:
            call(path, out)
        message = str(error.value)
        assert "\n" not in message and str(path) in message and not out.exists()
        # Data that was never prepared, and scores that are not there yet, have lines of their own.
        unprepared = verb == "data.dir" and name in NEW | {"hub", "other"}
        if not unprepared:
            assert KINDS[name] in message, message
            if name != "missing":
                gate = directories.READS | directories.WRITES
                assert gate[verb].verb.split(" --")[0] in message
    assert contents(root) == before


ADVICE = {
    ("score", "finetuned"): "name {root}/transformers",
    ("evaluate", "transformers"): "score, export --onnx, convert, finetune --init, train.init",
    ("export", "seeds"): "name {root}/seeds/seed_0",
    ("finetune", "run/checkpoints/6"): "name {root}/run",
    ("score", "hub"): "name {root}/hub/snapshots/0abc",
    ("score", "other"): "a checkpoint has config.json and model.safetensors",
    ("score", "data"): "train reads it as data.dir",
    ("score", "tokenizer"): "prepare reads it as data.tokenizer=",
    ("train.init", "pair"): "name {root}/pair/discriminator",
    ("export", "started"): "the command that started it goes on",
    ("evaluate", "unfinished"): "the finetune command that started it goes on",
    ("evaluate", "unfinished seeds"): "the finetune command that started them goes on",
    ("train", "transformers"): "train.init={root}/transformers begins with it",
}


@pytest.mark.parametrize(("verb", "name"), ADVICE)
def test_a_refusal_says_what_to_do(root, tmp_path, verb, name):
    with pytest.raises(UserError) as error:
        VERBS[verb][0](root / name, tmp_path / "new" / "out")
    assert ADVICE[verb, name].format(root=root) in str(error.value)


@pytest.mark.parametrize("verb", directories.WRITES)
@pytest.mark.parametrize("place", ["below a file", "below a socket", "read-only"])
def test_what_cannot_be_written_is_refused_first(root, tmp_path, verb, place):
    (tmp_path / "read-only").mkdir(mode=0o555)
    parents = {"below a file": root / "file", "below a socket": root / "socket"}
    parent = parents.get(place, tmp_path / "read-only")
    if place == "read-only" and os.access(parent, os.W_OK):
        pytest.skip("the superuser may write everywhere")
    path = parent / "new" / "out"
    with pytest.raises(UserError, match="cannot be written: ") as error:
        VERBS[verb][0](path, tmp_path / "new" / "out")
    assert f"{path} cannot be written: {parent} is " in str(error.value)
