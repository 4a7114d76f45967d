"""Continued pre-training: no head, no table, an untied head, names with wrappers before them."""

import dataclasses
import json

import numpy as np
import pytest

import deberta_jax
from deberta_jax.errors import UserError
from deberta_jax.interop import layouts, pretrained
from deberta_jax.interop.continued import continued
from deberta_jax.interop.files import read_tensors, write_tensors
from deberta_jax.interop.names import UNTIED_DECODER, task_of_tensors
from deberta_jax.interop.released import Released, read_released
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.objectives.mlm import MaskedLanguageModelling
from deberta_jax.objectives.rtd import ReplacedTokenDetection
from deberta_jax.runs.loading import Initial
from tests.model import small

TABLE = "deberta.embeddings.position_embeddings.weight"
HEADS = ("lm_predictions.", "cls.predictions.")
MODEL = DebertaForMaskedLM(small.variant(num_hidden_layers=1))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A masked LM with a mask decoder, as we export it: (directory, its tensors, its config)."""
    directory = tmp_path_factory.mktemp("masked_lm")
    params = small.random_params(MODEL.config, seed=7)
    pretrained.save(directory, MODEL, params)
    return directory, read_tensors(directory), read_released(directory)


def written(directory, tensors, source, **changes):
    """A checkpoint of these tensors with the config of another."""
    directory.mkdir(exist_ok=True)
    write_tensors(tensors, directory)
    fields = json.loads((source / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def bare(tensors):
    """What a bare model keeps, under the names that transformers saves it with."""
    return {
        name.removeprefix("deberta."): x
        for name, x in tensors.items()
        if not name.startswith((*HEADS, TABLE))
    }


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        np.testing.assert_array_equal(tensor, right[name], err_msg=name)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "model.", "net.encoder."]
)
def test_names_before_the_model_s_own_are_taken_off(prefix, checkpoint, tmp_path):
    source, tensors, want = checkpoint
    wrapped = {prefix + name: x for name, x in tensors.items()}
    one = read_released(written(tmp_path / "wrapped", wrapped, source))
    assert one.config == want.config
    assert_same(one.tensors, want.tensors)


def test_a_compiled_encoder_beside_its_head(checkpoint, tmp_path):
    source, tensors, want = checkpoint
    inner = {name.replace("deberta.", "deberta._orig_mod.", 1): x for name, x in tensors.items()}
    assert_same(read_released(written(tmp_path / "inner", inner, source)).tensors, want.tensors)


def test_the_encoder_of_a_gliner(checkpoint, tmp_path, caplog):
    """Its config lies in `gliner_config.json`; its other parts are named and left out."""
    source, tensors, want = checkpoint
    inner = "token_rep_layer.bert_layer.model."
    whole = {inner + name: x for name, x in bare(tensors).items()}
    whole |= {"rnn.lstm.weight_ih_l0": np.ones((4, 4), np.float32)}
    directory = written(tmp_path / "gliner", whole, source)
    encoder = json.loads((directory / "config.json").read_text())
    (directory / "config.json").unlink()
    gliner = {"model_name": "some/deberta", "vocab_size": 120, "span_mode": "markerV0"}
    path = directory / "gliner_config.json"
    path.write_text(json.dumps(gliner))
    with pytest.raises(UserError, match=r"has no encoder_config; put the config\.json of some/deb"):
        read_released(directory)
    path.write_text(json.dumps(gliner | {"encoder_config": encoder}))
    one = read_released(directory)
    assert one.config == dataclasses.replace(want.config, enhanced_mask_decoder=False)
    assert_same(one.tensors, {f"deberta.{name}": x for name, x in bare(tensors).items()})
    assert "left out, around the encoder token_rep_layer.bert_layer.model.*: rnn" in caplog.text


def test_a_folder_of_sentence_transformers(checkpoint, tmp_path):
    source, tensors, _ = checkpoint
    written(tmp_path / "0_Transformer", bare(tensors), source)
    modules = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert_same(read_released(tmp_path).tensors, read_released(tmp_path / "0_Transformer").tensors)


def test_two_encoders_are_refused(checkpoint, tmp_path):
    source, tensors, _ = checkpoint
    both = {side + name: x for side in ("query.", "document.") for name, x in tensors.items()}
    with pytest.raises(UserError, match=r"there are 2 encoders, under document\., query\.;"):
        read_released(written(tmp_path / "both", both, source))


def test_what_a_checkpoint_lacks_is_new_and_named(checkpoint, tmp_path, capsys):
    """By the objective, as `train.init` begins: a bare encoder, as AutoModel saves it."""
    source, tensors, want = checkpoint
    directory = written(tmp_path / "bare", bare(tensors), source)
    objective = MaskedLanguageModelling(MODEL.config)
    params = objective.initial_params(Initial(directory))
    said = "not its own but new, to be learned: lm_head (lm_predictions.*), position_embeddings ("
    assert said in capsys.readouterr().out
    own = pretrained.to_state_dict(MODEL, params)
    encoder = read_released(directory).tensors
    assert_same({name: own[name] for name in encoder}, encoder)
    new = own.keys() - encoder.keys()
    assert new == {n for n in want.tensors if n.startswith(("lm_predictions.", TABLE))}
    assert np.std(own[TABLE]) == pytest.approx(MODEL.config.initializer_range, rel=0.1)
    other = pretrained.to_state_dict(MODEL, objective.initial_params(Initial(directory, seed=1)))
    assert {name for name in own if not np.array_equal(own[name], other[name])} >= {TABLE}
    with pytest.raises(UserError, match=r"train\.new_parts is for the objectives of one model"):
        rtd = ReplacedTokenDetection(MODEL.config, compute=None, masking=None)
        rtd.initial_params(Initial(directory, ("lm_head",)))


def test_parts_that_are_asked_for_are_new_and_others_the_checkpoint_s(checkpoint):
    *_, want = checkpoint
    whole = continued(MODEL, want)
    assert whole.new == ()
    assert_same(pretrained.to_state_dict(MODEL, whole.params), want.tensors)
    params, new = continued(MODEL, want, ["position_embeddings"])
    assert new == ("position_embeddings",)
    own = pretrained.to_state_dict(MODEL, params)
    assert not np.array_equal(own.pop(TABLE), want.tensors[TABLE])
    assert_same(own, {name: x for name, x in want.tensors.items() if name != TABLE})


def test_parts_that_there_are_not_are_refused(checkpoint):
    *_, want = checkpoint
    with pytest.raises(UserError, match="'pooler'; this model's are lm_head, position_embeddings"):
        continued(MODEL, want, ["pooler"])
    # Every layer was trained on positions in the input: no other table does in their place.
    biased = dataclasses.replace(MODEL.config, position_biased_input=True)
    model = DebertaForMaskedLM(biased)
    with pytest.raises(UserError, match=r"'position_embeddings'; this model's are lm_head$"):
        continued(model, want, ["position_embeddings"])
    without = {name: x for name, x in want.tensors.items() if name != TABLE}
    with pytest.raises(UserError, match=f"missing: {TABLE}"):
        continued(model, Released(biased, without))


def test_half_a_head_is_refused(checkpoint):
    *_, want = checkpoint
    half = {n: x for n, x in want.tensors.items() if n != "lm_predictions.lm_head.bias"}
    with pytest.raises(UserError, match=r"missing: lm_predictions\.lm_head\.bias"):
        continued(MODEL, Released(want.config, half))


def test_the_head_of_a_discriminator_is_not_taken_for_its_own(checkpoint):
    *_, want = checkpoint
    width = MODEL.config.hidden_size
    head = {"mask_predictions.dense.weight": np.ones((width, width), np.float32)}
    both = Released(want.config, want.tensors | head)
    with pytest.raises(UserError, match=r"this is a discriminator.*train\.new_parts"):
        continued(MODEL, both)
    assert continued(MODEL, both, ["lm_head"]).new == ("lm_head",)


def untied(tensors, seed):
    """As transformers saves a masked LM with tie_word_embeddings=False."""
    rng = np.random.default_rng(seed)
    table = tensors["deberta.embeddings.word_embeddings.weight"]
    decoder = {
        "cls.predictions.decoder.weight": rng.normal(size=table.shape).astype(np.float32),
        "cls.predictions.decoder.bias": rng.normal(size=len(table)).astype(np.float32),
    }
    return tensors | decoder


def test_an_untied_head_is_refused_where_it_is_read_and_new_where_asked(checkpoint, seed, tmp_path):
    source, tensors, want = checkpoint
    tensors = untied(tensors, seed)
    directory = written(tmp_path / "untied", tensors, source, tie_word_embeddings=False)
    one = read_released(directory)
    with pytest.raises(UserError, match=r"has a matrix of its own .*train\.new_parts"):
        continued(MODEL, one)
    params, new = continued(MODEL, one, ["lm_head"])
    assert new == ("lm_head",)
    own = pretrained.to_state_dict(MODEL, params)
    encoder = [name for name in own if not name.startswith("lm_predictions.")]
    assert_same({n: own[n] for n in encoder}, {n: want.tensors[n] for n in encoder})
    # The encoder alone needs no head.
    deberta_jax.load_pretrained(directory)
    # Written again, nothing is lost, and transformers does not tie it.
    assert task_of_tensors(one.tensors) == "masked_lm" and UNTIED_DECODER in one.tensors
    layouts.write_transformers(one, tmp_path / "again")
    assert_same(read_tensors(tmp_path / "again"), tensors)
    fields = json.loads((tmp_path / "again" / "config.json").read_text())
    assert fields["tie_word_embeddings"] is False and fields["legacy"] is True


@pytest.mark.parametrize("names", ["cls.predictions", "lm_predictions"])
def test_the_head_s_names_are_the_user_s_choice(names, checkpoint, tmp_path):
    *_, want = checkpoint
    layouts.write_transformers(want, tmp_path, names)
    there = {name for name in read_tensors(tmp_path) if name.startswith(HEADS)}
    assert there and all(name.startswith(f"{names}.") for name in there)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["legacy"] is (names == "cls.predictions")
    assert_same(read_released(tmp_path).tensors, want.tensors)
    with pytest.raises(UserError, match="head_names is 'head'"):
        layouts.write_transformers(want, tmp_path / "no", "head")
