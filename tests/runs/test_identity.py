"""What a run learned from is part of it: other data, other examples, other weights are refused."""

import dataclasses
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import deberta_jax
from deberta_jax import schema
from deberta_jax.data import dataset
from deberta_jax.data.tasks.encoded import Encoded
from deberta_jax.data.tokenizer import train_tokenizer
from deberta_jax.errors import UserError
from deberta_jax.preparation import pipeline
from deberta_jax.runs import identity
from deberta_jax.runs.opening import open_run

RUN = Path(__file__).parents[1] / "formats" / "v2"


def silent(line):
    del line


def write_corpus(path, documents, rng=random):
    """Made-up documents in the letters of the run's tokenizer, an object a line."""
    words = ["".join(rng.choices("aehilnorst", k=rng.randint(1, 5))) for _ in range(200)]
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(documents)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def corpus(tmp_path, seed):
    path = tmp_path / "corpus.jsonl"
    write_corpus(path, 30, random.Random(seed))
    return path


def config_of(corpus, directory, **fields):
    """The kept run's config, its data prepared from `corpus` with the kept run's tokenizer."""
    config = schema.load(RUN / "config.json")
    model = str(RUN / "tokenizer" / "spm.model")
    fields |= {"corpus": str(corpus), "dir": str(directory), "tokenizer": model}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **fields))


def prepared(corpus, directory, overwrite=False, **fields):
    config = config_of(corpus, directory, **fields)
    pipeline.prepare(config.data, directory, overwrite=overwrite, log=silent)
    return config


GROWN = {
    "a line more": lambda path: path.write_text(path.read_text() + path.read_text()),
    "as long as before": lambda path: path.write_text(path.read_text().replace("a", "e")),
    "another file": lambda path: shutil.copy(path, path.with_name("corpus2.jsonl")),
}


@pytest.mark.parametrize("change", GROWN.values(), ids=GROWN)
def test_a_corpus_that_changed_is_not_prepared_already(corpus, tmp_path, change):
    pattern = corpus.with_name("corpus*.jsonl")
    config = prepared(pattern, tmp_path / "data")
    before = (tmp_path / "data" / "metadata.json").read_bytes()
    change(corpus)
    with pytest.raises(UserError, match=r"data.corpus=.* has changed since .*--overwrite") as error:
        prepared(pattern, tmp_path / "data")
    sizes = r"1 file of [\d,]+ bytes then, \d files? of [\d,]+ bytes now"
    error.match(sizes)
    assert (tmp_path / "data" / "metadata.json").read_bytes() == before
    prepared(pattern, tmp_path / "data", overwrite=True)
    assert prepared(pattern, tmp_path / "data") == config


def test_a_corpus_that_was_only_touched_or_is_gone_is_prepared_already(corpus, tmp_path):
    lines = []
    config = prepared(corpus, tmp_path / "data")
    corpus.write_text(corpus.read_text())  # newer, and the same
    pipeline.prepare(config.data, tmp_path / "data", log=lines.append)
    corpus.unlink()
    pipeline.prepare(config.data, tmp_path / "data", log=lines.append)
    assert len(lines) == 2 and all("prepared already" in line for line in lines)


def test_another_held_out_corpus_and_another_tokenizer_are_named(corpus, tmp_path):
    held_out, model = tmp_path / "held.jsonl", tmp_path / "spm.model"
    write_corpus(held_out, 5)
    shutil.copy(RUN / "tokenizer" / "spm.model", model)
    config = config_of(corpus, tmp_path / "data", validation_corpus=str(held_out))
    data = dataclasses.replace(config.data, tokenizer=str(model))
    pipeline.prepare(data, tmp_path / "data", log=silent)
    write_corpus(held_out, 6)
    with pytest.raises(UserError, match=r"data.validation_corpus=.*held.jsonl has changed"):
        pipeline.prepare(data, tmp_path / "data", log=silent)
    train_tokenizer([json.loads(line)["text"] for line in corpus.open()], 60, str(model))
    with pytest.raises(UserError, match=r"data.tokenizer=.*spm.model has changed"):
        pipeline.prepare(data, tmp_path / "data", log=silent)


def test_a_run_goes_on_with_the_data_that_it_was_started_with(corpus, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(RUN, workdir)
    config = prepared(corpus, tmp_path / "data")
    deberta_jax.train(config, workdir)  # complete; its identity is kept
    kept = json.loads((workdir / "identity.json").read_text())
    assert len(kept["run"]) == 16 and kept["the text of data.corpus"]
    # The same data elsewhere are the same.
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    elsewhere = config_of(corpus, tmp_path / "moved")
    identity.check(workdir, identity.of_data(dataset.load(elsewhere.data.dir)), "")
    # One letter of the text is another text.
    corpus.write_text(corpus.read_text().replace("a", "e", 1))
    prepared(corpus, tmp_path / "data", overwrite=True)
    before = (workdir / "config.json").read_bytes(), (workdir / "identity.json").read_bytes()
    with pytest.raises(UserError, match=r"the text of data.corpus: .* then, .* now.*train.init="):
        deberta_jax.train(config, workdir)
    assert before == ((workdir / "config.json").read_bytes(),
                      (workdir / "identity.json").read_bytes())  # fmt: skip
    capsys.readouterr()
    assert open_run(workdir).prepared
    note = capsys.readouterr().out
    assert "have changed since the run was started (" in note and "the text of data.corpus" in note


def encoded(rng, count=5):
    items = [{"input_ids": rng.integers(9, size=4), "label": np.int32(n % 2)} for n in range(count)]
    return Encoded(items, [], [{"id": n, "label": str(n % 2)} for n in range(count)], Counter())


CHANGES = {
    "the weights": lambda tensors, pieces, given: tensors["a"].__setitem__(0, 9.0),
    "the tokenizer": lambda tensors, pieces, given: pieces.append("new"),
    "the train examples": lambda tensors, pieces, given: given.items[1].update(label=np.int32(0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_task_was_learned_from_is_named_where_it_changed(tmp_path, seed, name):
    rng = np.random.default_rng(seed)
    tensors, pieces, given = {"a": rng.random(3, np.float32)}, ["x", "y"], encoded(rng)
    sets = [("train", given), ("validation", encoded(rng))]
    identity.keep(tmp_path, identity.of_examples(tensors, pieces, sets))
    run = identity.read(tmp_path)["run"]
    identity.check(tmp_path, identity.of_examples(tensors, pieces, sets), "")
    CHANGES[name](tensors, pieces, given)
    changed = identity.of_examples(tensors, pieces, sets)
    with pytest.raises(UserError) as error:
        identity.check(tmp_path, changed, "name another --workdir")
    message = str(error.value)
    assert message.count(" then, ") == 1 and f"({name}: " in message
    assert message.startswith(str(tmp_path)) and message.endswith("name another --workdir")
    identity.keep(tmp_path, changed)  # what it was started with stays
    assert identity.read(tmp_path)["run"] == run
    with pytest.raises(UserError):
        identity.check(tmp_path, changed, "")


def test_a_digest_tells_types_shapes_and_order_apart():
    values = [
        {"a": np.zeros(2, np.float32)}, {"b": np.zeros(2, np.float32)}, {"a": np.zeros(2)},
        {"a": np.zeros((2, 1), np.float32)}, ["a", "b"], ["b", "a"], [["a"], "b"], ["ab"],
        [1, 0], [True, False], ["1", "0"], None, "", [], {}, np.zeros((0, 3)), [None],
    ]  # fmt: skip
    assert len({identity.digest(value) for value in values}) == len(values)
    assert identity.digest({"a": 1, "b": 2}) == identity.digest({"b": 2, "a": 1})
