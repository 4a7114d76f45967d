"""Every field of a `config.json` is used, refused, or known to change nothing."""

import json

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax.errors import UserError
from deberta_jax.interop.config_fields import (
    CHANGES_NOTHING,
    REFUSED_UNLESS_PLAIN,
    SHARED,
    USED,
)
from deberta_jax.interop.config_json import config_json, read_config
from deberta_jax.model.config import ModelConfig
from tests.interop import released
from tests.interop.released import torch, transformers
from tests.model import small

# Every field that the architecture is read from, with another value than `small.SMALL` has.
OTHERWISE = {
    "vocab_size": 130, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
    "intermediate_size": 80, "hidden_act": "relu", "hidden_dropout_prob": 0.3,
    "attention_probs_dropout_prob": 0.3, "max_position_embeddings": 170,
    "initializer_range": 0.5, "layer_norm_eps": 1e-5, "position_biased_input": True,
    "model_type": "deberta", "pos_att_type": "p2c", "max_relative_positions": 99,
    "position_buckets": 32, "share_att_key": False, "norm_rel_ebd": "none",
    "conv_kernel_size": 3, "conv_act": "relu", "pooler_hidden_act": "tanh",
    "enhanced_mask_decoder": False, "causal": True,
}  # fmt: skip
# These go together with others: told apart below, or one of two models' sections.
TOGETHER = {"relative_attention", "pooling", "generator", "discriminator"}


def read(directory, stated: dict) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps(stated))
    return read_config(directory, has_v1_attention=False, has_position_table=True)


@pytest.fixture
def stated():
    """A complete `config.json` of `small.SMALL`, without what is derived from its width."""
    fields = config_json(small.SMALL)
    return {k: x for k, x in fields.items() if k not in REFUSED_UNLESS_PLAIN}


@pytest.mark.parametrize("name", ["DebertaConfig", "DebertaV2Config"])
def test_every_field_of_transformers_configs_is_known(name, tmp_path):
    fields = getattr(transformers, name)().to_dict()
    known = {*SHARED, *USED, *REFUSED_UNLESS_PLAIN, *CHANGES_NOTHING}
    assert {field for field in fields if not field.startswith("_")} <= known
    assert read(tmp_path, fields).hidden_size == fields["hidden_size"]


def test_what_is_written_is_what_is_read(stated, tmp_path):
    assert read(tmp_path, stated) == small.SMALL
    assert read(tmp_path, config_json(small.SMALL)) == small.SMALL


def test_every_field_that_is_used_changes_the_config(stated, tmp_path):
    assert {*SHARED, *USED} == OTHERWISE.keys() | TOGETHER
    for field, value in OTHERWISE.items():
        also = {"share_att_key": False} if field == "model_type" else {}
        before, after = (read(tmp_path, stated | also | x) for x in ({}, {field: value}))
        assert before != after, field
    plain = {"relative_attention": False, "pos_att_type": []}
    assert read(tmp_path, stated | plain).pos_att_type == ()
    del stated["pooler_hidden_act"]
    pooling = {"pooling": {"hidden_act": "tanh", "dropout": 0.1}}
    assert read(tmp_path, stated | pooling).pooler_hidden_act == "tanh"


def test_what_changes_nothing_changes_nothing(stated, tmp_path):
    for field in [
        *sorted(CHANGES_NOTHING),
        "_name_or_path",
        "sbert_ce_default_activation_function",
    ]:
        assert read(tmp_path, stated | {field: "anything"}) == small.SMALL, field


@pytest.mark.parametrize("field", REFUSED_UNLESS_PLAIN)
def test_what_would_be_another_model_is_refused_by_name(field, stated, tmp_path):
    for value in ({"bits": 4}, 7):
        with pytest.raises(UserError, match=rf"config\.json: {field} is .*; only"):
            read(tmp_path, stated | {field: value})
    assert read(tmp_path, stated | {field: None}) == small.SMALL


def test_a_field_that_nobody_knows_is_refused_where_it_is_set(stated, tmp_path):
    with pytest.raises(UserError, match=r"pre_norm is True, and deberta_jax has no such field"):
        read(tmp_path, stated | {"pre_norm": True})
    for value in (False, None, 0, "", []):
        assert read(tmp_path, stated | {"pre_norm": value}) == small.SMALL


def test_relative_attention_off_with_terms_is_refused(stated, tmp_path):
    """transformers divides such scores by sqrt(3 d) instead of sqrt(d)."""
    for terms in (["c2p"], "p2c|c2p"):
        with pytest.raises(UserError, match="relative_attention is false, but pos_att_type is"):
            read(tmp_path, stated | {"relative_attention": False, "pos_att_type": terms})


def test_activations_of_other_names(stated, tmp_path):
    for name, ours in (("gelu_python", "gelu"), ("gelu_fast", "gelu_new")):
        config = read(tmp_path, stated | {"hidden_act": name, "pooler_hidden_act": name})
        assert config.hidden_act == config.pooler_hidden_act == ours
    for field in ("hidden_act", "pooler_hidden_act"):
        with pytest.raises(UserError, match=rf"{field} is 'silu'; it must be one of"):
            read(tmp_path, stated | {field: "silu"})


@pytest.mark.parametrize("field", ["hidden_size", "num_attention_heads", "num_hidden_layers"])
def test_no_heads_or_layers_are_refused_by_name(field, stated, tmp_path):
    with pytest.raises(UserError, match=rf"{field} is 0; it must be at least 1"):
        read(tmp_path, stated | {field: 0})


def test_one_layer_has_no_room_for_a_convolution(stated, tmp_path):
    with pytest.raises(UserError, match=r"conv_kernel_size is 3 and .*num_hidden_layers 1"):
        read(tmp_path, stated | {"conv_kernel_size": 3, "num_hidden_layers": 1})


def test_a_classifier_s_pooler_has_the_activation_of_its_config(seed, tmp_path):
    act = np.random.default_rng(seed).choice(["tanh", "relu", "gelu_new"])
    theirs = released.make(
        "v3", "ForSequenceClassification", seed, pooler_hidden_act=str(act), num_hidden_layers=1
    )
    theirs.save_pretrained(tmp_path)
    model, params = deberta_jax.load_pretrained(tmp_path, "sequence_classification")
    ids, mask = released.padded(seed, 12)
    ours = jax.jit(model.apply)({"params": params}, ids, mask)
    with torch.no_grad():
        want = theirs(torch.tensor(ids).long(), attention_mask=torch.tensor(mask)).logits.numpy()
    np.testing.assert_allclose(ours, want, atol=2e-5)
