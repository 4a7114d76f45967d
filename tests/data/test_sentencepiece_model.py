"""A tokenizer from the files that people hold: a model, `tokenizer.json`, a checkpoint's folder."""

import json
import shutil
from pathlib import Path

import pytest

from deberta_jax.data.sentencepiece_model import added_tokens
from deberta_jax.data.tokenizer import Tokenizer, write_pretrained
from deberta_jax.errors import UserError
from deberta_jax.interop.tokenizers import load_tokenizer
from deberta_jax.runs.pretraining import check_tokenizer
from tests.data.test_tokenizer import ODD_TEXTS

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    """A folder with `spm.model`, and one with `tokenizer.json`, as transformers 5 saves it."""
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    own, theirs = (tmp_path_factory.mktemp(name) for name in ("own", "theirs"))
    write_pretrained(tokenizer, own, model_max_length=64)
    loaded = transformers.AutoTokenizer.from_pretrained(own, local_files_only=True)
    loaded.save_pretrained(theirs)
    assert not (theirs / "spm.model").exists()
    return own, theirs


def edited(checkpoint, directory, **changes):
    """A copy of their `tokenizer.json` with changes to its model, or to other parts."""
    content = json.loads((checkpoint[1] / "tokenizer.json").read_text())
    for name, value in changes.items():
        place = content["model"] if name in content["model"] else content
        place[name] = value(place[name])
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


def test_every_form_gives_the_same_ids(tokenizer, checkpoint):
    own, theirs = checkpoint
    texts = [*ODD_TEXTS, "Shall I compare thee to a summer's day?", "a [MASK] b"]
    want = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    run = Path(tokenizer.path).parents[1]
    for path in (own, own / "spm.model", theirs, theirs / "tokenizer.json", run):
        one = Tokenizer(path)
        assert one.pieces == tokenizer.pieces and one.mask_id == tokenizer.mask_id, path
        assert [ids.tolist() for ids in one.encode_batch(texts)] == want, path
    plain = texts[-2]
    assert load_tokenizer(theirs).encode(plain, add_special_tokens=False).tolist() == want[-2]


def test_the_model_of_a_tokenizer_json_is_the_same_twice(checkpoint, tmp_path):
    first, again = Tokenizer(checkpoint[1]), Tokenizer(checkpoint[1] / "tokenizer.json")
    assert first.sha256 == again.sha256
    write_pretrained(first, tmp_path, model_max_length=64)
    assert Tokenizer(tmp_path / "spm.model", first.sha256).pieces == first.pieces


def test_a_folder_of_sentence_transformers(checkpoint, tokenizer, tmp_path):
    shutil.copytree(checkpoint[1], tmp_path / "0_Transformer")
    modules = [
        {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert Tokenizer(tmp_path).pieces == tokenizer.pieces
    assert load_tokenizer(tmp_path).pieces == tokenizer.pieces


def test_what_cannot_be_used_is_said(checkpoint, tmp_path):
    def refuse(path, match):
        with pytest.raises(UserError, match=match):
            Tokenizer(path)

    refuse(tmp_path, "has neither spm.model nor tokenizer.json")
    refuse(tmp_path / "none.json", "cannot be read: No such file")
    bpe = edited(checkpoint, tmp_path, type=lambda _: "BPE", vocab=lambda _: {"a": 0})
    refuse(bpe, "of type BPE; data is prepared with unigram ones")
    moved = edited(
        checkpoint,
        tmp_path,
        added_tokens=lambda tokens: [t | {"id": t["id"] + (t["id"] > 3)} for t in tokens],
    )
    refuse(moved, r"\[MASK\] has the id 2001; it has to follow the last piece, as 2000")
    other = edited(checkpoint, tmp_path, vocab=lambda v: [*v[1:4], v[0], *v[4:]])
    refuse(other, r"first pieces are \[CLS\] \[SEP\] \[UNK\] \[PAD\]")
    (tmp_path / "tokenizer.json").write_text("{")
    refuse(tmp_path / "tokenizer.json", r"tokenizer\.json is damaged")


def test_train_init_with_another_tokenizer_json_is_refused(checkpoint, prepared, tmp_path):
    for directory in (*checkpoint, tmp_path):  # that of the data, in both forms; none
        check_tokenizer(prepared, directory, "train.init was trained")
    edited(checkpoint, tmp_path, vocab=lambda v: [*v[:-1], ["zyx", v[-1][1]]])
    with pytest.raises(UserError, match=r"^train\.init was trained with another tokenizer"):
        check_tokenizer(prepared, tmp_path, "train.init was trained")


def test_tokens_that_were_added_are_named_and_left_out(checkpoint, tokenizer, tmp_path):
    more = {"content": "<E1>", "id": tokenizer.vocab_size, "special": False}
    path = edited(checkpoint, tmp_path, added_tokens=lambda tokens: [*tokens, more])
    assert Tokenizer(path).pieces == tokenizer.pieces
    assert added_tokens(path, "[MASK]") == added_tokens(tmp_path, "[MASK]") == ["<E1>"]
    assert added_tokens(checkpoint[1], "[MASK]") == added_tokens(checkpoint[0], "[MASK]") == []


def test_two_tokenizers_in_one_folder_are_refused(checkpoint, tmp_path):
    shutil.copy(checkpoint[0] / "spm.model", tmp_path)
    shutil.copy(checkpoint[1] / "tokenizer.json", tmp_path)
    assert Tokenizer(tmp_path).sha256 == Tokenizer(checkpoint[0]).sha256
    edited(checkpoint, tmp_path, vocab=lambda v: [*v[:-1], ["zyx", v[-1][1]]])
    with pytest.raises(UserError, match="hold different pieces"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    "setting, value",
    [("do_lower_case", True), ("split_by_punct", True), ("add_prefix_space", False)],
)
def test_settings_that_make_other_pieces_are_refused(setting, value, checkpoint, tmp_path):
    shutil.copytree(checkpoint[1], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    with pytest.raises(UserError, match=f"has {setting} {value}"):
        Tokenizer(tmp_path)
