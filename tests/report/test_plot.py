"""Pictures through the verb's own function: what is drawn, what is legible, what is refused."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from deberta_jax import plot, schema
from deberta_jax.data.tokenizer import Tokenizer, train_tokenizer, write_pretrained
from deberta_jax.errors import UserError
from deberta_jax.interop import pretrained
from deberta_jax.model import inspection
from deberta_jax.model.heads import Deberta
from deberta_jax.report import figures, norms
from deberta_jax.report.position_profiles import position_profiles
from deberta_jax.training.metrics import MetricWriter
from tests.model import small

CONFIG = small.variant(num_hidden_layers=2, vocab_size=64, num_attention_heads=2, hidden_size=32)
TEXT = "the quick brown fox jumps over a lazy dog while many wizards box and play "


class Flags(dict):
    """What the command line gives the verb; every flag that is not named has its default."""

    def __init__(self, **given):
        flags = dict.fromkeys(
            ["checkpoint", "workdir", "out", "sentence", "parts", "text", "metric", "label"]
        )
        flags |= dict(layer="", head="all", emd=0, sequences=4) | given
        super().__init__({name: SimpleNamespace(value=value) for name, value in flags.items()})

    def __getattr__(self, name):
        return self[name].value


def save(directory, params, **options):
    config = dataclasses.replace(CONFIG, **options)
    pretrained.save(directory, Deberta(config), params(config))
    train_tokenizer([TEXT] * 3, 36, directory / "spm.model", num_threads=1)
    write_pretrained(Tokenizer(directory / "spm.model"), directory, model_max_length=160)
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("released"), bare)


def bare(config):
    params = small.random_params(config, 1)
    del params["lm_head"]
    return params


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    kept, original = [], figures.save

    def keep(figure, *arguments):
        figure.canvas.draw()
        kept.append(figure)
        original(figure, *arguments)

    monkeypatch.setattr(figures, "save", keep)
    return kept


def overlapping(labels):
    """Pairs of tick labels, drawn, that cover one another."""
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    return [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]


def test_forty_tokens_are_legible_on_shared_scales(checkpoint, drawn, tmp_path):
    letters = 38
    sentence = "the " + "z" * (letters - 2)  # a piece a letter
    out = tmp_path / "new" / "maps.png"
    flags = Flags(what="attention", checkpoint=[checkpoint], sentence=sentence, out=out)
    plot.main(flags)
    assert out.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    maps, bars = figure.axes[:8], figure.axes[8:]
    tokens = [label.get_text() for label in maps[4].get_yticklabels()]
    assert 36 <= len(tokens) <= 44 and tokens[0] == "[CLS]" and tokens[-1] == "[SEP]"
    assert [label.get_text() for label in maps[4].get_xticklabels()] == tokens
    assert not overlapping(maps[4].get_yticklabels()) and not overlapping(maps[4].get_xticklabels())
    assert {bar.get_ylabel() for bar in bars} == {
        "attention probability",
        "score (part of the softmax's input)",
    }
    limits = [axis.images[0].get_clim() for axis in maps]
    assert len({limits[0], limits[4]}) == 1 and len(set(limits[1:4] + limits[5:])) == 1
    sums = maps[0].images[0].get_array().sum(axis=1)
    np.testing.assert_allclose(sums, 1, atol=1e-5)


def test_two_checkpoints_stand_side_by_side(checkpoint, drawn, tmp_path):
    options = dict(pos_att_type=(), position_biased_input=True)
    plain = save(tmp_path / "plain", bare, **options)
    both = dict(checkpoint=[checkpoint, plain], sentence="the dog", head="mean")
    plot.main(Flags(what="attention", out=tmp_path / "two.png", **both))
    maps = [axis for axis in drawn[0].axes if axis.images]
    assert [axis.get_title().split(",")[0] for axis in maps] == [checkpoint.name, "plain"]
    with pytest.raises(UserError, match="has no c2p; it has attention, c2c"):
        plot.main(Flags(what="attention", out=tmp_path / "two.png", parts=["c2p"], **both))
    with pytest.raises(UserError, match="has no relative terms"):
        text = dict(checkpoint=[plain], text=str(written(tmp_path)))
        plot.main(Flags(what="profiles", out=tmp_path / "p.png", **text))


def written(directory):
    path = directory / "text.txt"
    path.write_text(TEXT * 100)
    return path


def test_a_profile_is_the_mean_over_the_pairs_at_each_distance(seed):
    params = small.random_params(CONFIG, seed)
    batches = [small.random_batch(CONFIG, seed + i, batch=2, length=10) for i in range(2)]
    batches = [(batch["input_ids"] % 60, batch["segment_ids"]) for batch in batches]
    profiles = position_profiles(CONFIG, params, batches, (1,), (1,))
    sums, pairs = np.zeros((2, 19)), np.zeros(19)
    for ids, segments in batches:
        *_, given = inspection.layer_inputs(CONFIG, params, ids, segments)
        scores = inspection.attention_scores(CONFIG, given, (1,))
        for row in range(2):
            for i in range(10):
                for j in range(10):
                    if segments[row, i] == segments[row, j] > 0:
                        pairs[i - j + 9] += 1
                        sums[0, i - j + 9] += scores["c2p"][row, 0, i, j]
                        sums[1, i - j + 9] += scores["p2c"][row, 0, i, j]
    np.testing.assert_array_equal(profiles.pairs, pairs)
    for part, total in zip(("c2p", "p2c"), sums, strict=True):
        seen = pairs > 0
        want = total[seen] / pairs[seen]
        np.testing.assert_allclose(profiles.bias[part][0, 0, seen], want, atol=1e-5)


def test_a_profile_of_real_text_has_a_line_for_each_head(checkpoint, drawn, tmp_path):
    text = str(written(tmp_path))
    plot.main(Flags(what="profiles", checkpoint=[checkpoint], text=text, out=tmp_path / "p.png"))
    panels = drawn[0].axes
    assert len(panels) == 4  # two layers, two terms
    labels = [line.get_label() for line in panels[0].lines]
    assert labels[:2] == ["head 1", "head 2"]
    assert np.isfinite(panels[0].lines[0].get_ydata()).all()


def run_of(directory, losses, seed=0, learning_rate=1e-3, norms=False):
    """A workdir with the metrics of a run."""
    config = schema.default()
    config.seed, config.optimizer.learning_rate = seed, learning_rate
    directory.mkdir()
    schema.save(schema.freeze(config), directory / "config.json")
    writer = MetricWriter(directory, 0)
    for step, loss in enumerate(losses, 1):
        values = {"train/loss": loss, "eval/loss": loss, "eval/unigram_loss": 9.0}
        if norms:
            for kind, scale in (("weight", 10.0), ("gradient", 1.0), ("update", 0.1)):
                parts = (
                    "embeddings/word",
                    "encoder/layers/1",
                    "encoder/last_layer",
                    "encoder/layers/0",
                )
                for place, part in enumerate(parts):
                    values[f"norms/{kind}/{part}"] = scale * (1 + place) / step
        writer.write(step, values)
    writer.close()
    return directory


def test_runs_that_differ_in_the_seed_alone_are_one_line_with_a_band(drawn, tmp_path):
    first = run_of(tmp_path / "a", [5.0, 3.0, 2.0])
    second = run_of(tmp_path / "b", [7.0, 5.0], seed=1)  # stopped early
    other = run_of(tmp_path / "c", [6.0, 6.0, 6.0], learning_rate=1e-4)
    plot.main(Flags(what="curves", workdir=[first, second, other], out=tmp_path / "c.png"))
    held_out = next(axis for axis in drawn[0].axes if axis.get_ylabel() == "held-out loss (nats)")
    lines = {line.get_label(): line.get_xydata().tolist() for line in held_out.lines}
    assert lines == {
        "learning_rate=0.001 (2 runs)": [[1, 6], [2, 4]],
        "learning_rate=0.0001": [[1, 6], [2, 6], [3, 6]],
        "unigram baseline": [[1, 9], [2, 9]],
    }
    band = held_out.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 3 and band[:, 1].max() == 7


def test_norms_are_drawn_layer_by_layer(drawn, tmp_path):
    workdir = run_of(tmp_path / "run", [3.0, 2.0], norms=True)
    plot.main(Flags(what="norms", workdir=[workdir], out=tmp_path / "n.png"))
    weight, *_, ratio = drawn[0].axes
    assert {line.get_label(): list(line.get_ydata()) for line in weight.lines} == {
        "layer 1": [40, 20],
        "layer 2": [20, 10],
        "layer 3": [30, 15],
        "embeddings/word": [10, 5],
    }
    assert all(np.allclose(line.get_ydata(), 0.01) for line in ratio.lines)
    steps, read = norms.read_norms(workdir)
    assert list(steps) == [1, 2] and set(read) == {"weight", "gradient", "update"}


def test_mistakes_are_one_line_each(checkpoint, tmp_path):
    run = run_of(tmp_path / "run", [3.0])
    out = tmp_path / "x.png"
    maps = dict(what="attention", out=out, checkpoint=[checkpoint], sentence="the dog")
    mistakes = [
        (dict(what=None, out=out), "what to plot is missing"),
        (dict(maps, out=None), "--out is missing"),
        (dict(maps, out=tmp_path / "x.txt"), "must end in .png"),
        (dict(maps, checkpoint=None), "--checkpoint is missing"),
        (dict(maps, checkpoint=[tmp_path / "no"]), "/no is no directory"),
        (dict(maps, sentence=None), "--sentence is missing"),
        (dict(maps, layer="3"), "--layer=3: the model has layers 1 to 2"),
        (dict(maps, layer="first"), "--layer=first: the model has layers 1 to 2"),
        (dict(maps, head="0"), "--head=0: the model has heads 1 to 2"),
        (dict(maps, sentence="z" * 90), "tokens; it must have at most 64"),
        (dict(maps, emd=1), "has no mask decoder"),
        (dict(what="profiles", out=out, checkpoint=[checkpoint]), "--text is missing"),
        (dict(what="curves", out=out), "--workdir is missing"),
        (dict(what="curves", out=out, workdir=[run], metric=["eval/x"]), "has no eval/x; it has"),
        (
            dict(what="curves", out=out, workdir=[run], label=["a", "b"]),
            "--label names 2 runs of 1",
        ),
        (dict(what="norms", out=out, workdir=[run]), "has no norms; train with train.norms_every"),
        (dict(what="norms", out=out, workdir=[checkpoint]), "has no norms"),
    ]
    for flags, message in mistakes:
        flags = {"what": None} | flags
        with pytest.raises(UserError) as caught:
            plot.main(Flags(**flags))
        assert message in str(caught.value), (flags, str(caught.value))
    assert not out.exists()


def test_the_word_after_the_verb_says_what():
    process = subprocess.run(
        [sys.executable, "-m", "deberta_jax.plot", "landscape"], capture_output=True, text=True
    )
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert "landscape" in line and "<attention|profiles|curves|norms>" in line
