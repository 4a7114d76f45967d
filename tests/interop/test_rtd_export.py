"""What is written of a pair: `transformers` reads it, Microsoft's code does, and we do."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax.data.config import MaskingConfig
from deberta_jax.errors import UserError
from deberta_jax.interop import pretrained
from deberta_jax.interop.files import read_tensors
from deberta_jax.interop.names import with_head_names
from deberta_jax.interop.rtd_export import write_discriminator, write_generator, write_pair
from deberta_jax.interop.rtd_files import read_pair
from deberta_jax.interop.rtd_pair import replaced_token_params
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.objectives.config import RtdConfig
from deberta_jax.objectives.rtd import ReplacedTokenDetection
from tests.interop import released, rtd
from tests.interop.released import torch, transformers
from tests.interop.test_rtd_files import assert_same
from tests.model import small

LAYOUT = pytest.mark.parametrize("layout", ["transformers", "microsoft"])


@pytest.fixture
def pair(seed, tmp_path):
    """A pair as it was read: with its tokenizer, and E_Δ where its file keeps it."""
    files = rtd.make(seed)
    own = files.discriminator | {rtd.WORD_DELTA: files.delta}
    home = rtd.write_folder(own, 4, tmp_path / "read")
    rtd.write_folder(files.generator, 2, home / "generator")
    rtd.write_tokenizer(home, 120)
    return read_pair(home)


@LAYOUT
def test_transformers_gives_the_same_hidden_states(layout, pair, seed, tmp_path):
    """By the summed table; the RTD head is extra to it, as in released files."""
    write_discriminator(tmp_path / "out", pair.discriminator, layout=layout)
    theirs, info = transformers.AutoModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert type(theirs).__name__ == "DebertaV2Model"
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    assert info["unexpected_keys"] <= {*rtd.HEAD, rtd.POSITIONS.removeprefix("deberta.")} | {
        rtd.POSITIONS
    }
    ids, mask = released.padded(seed, 40, released.SIDES)
    model, params = deberta_jax.load_pretrained(tmp_path / "out")
    ours = np.asarray(jax.jit(model.apply)({"params": params}, ids, mask))
    with torch.no_grad():
        want = theirs(torch.tensor(ids).long(), torch.tensor(mask)).last_hidden_state.numpy()
    seen = mask.astype(bool)
    np.testing.assert_allclose(ours[seen], want[seen], rtol=0, atol=1e-5)


def test_transformers_reads_the_generator_as_a_masked_lm(pair, tmp_path):
    write_generator(tmp_path / "out", pair.generator)
    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    want = with_head_names(pair.generator.released().tensors)
    for name, parameter in theirs.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), want[name], err_msg=name)


@LAYOUT
def test_a_pair_comes_back_bit_for_bit(layout, pair, tmp_path):
    write_pair(tmp_path / "out", pair, layout=layout)
    again = read_pair(tmp_path / "out")
    for part in ("discriminator", "generator"):
        ours, want = getattr(again, part), getattr(pair, part)
        assert ours.config == want.config
        assert_same(ours.released().tensors, want.released().tensors)
    assert again.tokenizer.pieces == pair.tokenizer.pieces
    if layout == "microsoft":
        np.testing.assert_array_equal(again.delta, pair.delta)
    else:  # the difference of two rounded tables
        np.testing.assert_allclose(again.delta, pair.delta, rtol=0, atol=1e-7)


def test_half_precision_keeps_delta_whole(pair, tmp_path):
    write_pair(tmp_path / "out", pair, layout="microsoft", dtype="float16")
    written = read_tensors(tmp_path / "out")
    types = {name: tensor.dtype.name for name, tensor in written.items()}
    assert types.pop(rtd.WORD_DELTA) == "float32" and set(types.values()) == {"float16"}
    again = read_pair(tmp_path / "out")
    np.testing.assert_array_equal(again.delta, pair.delta)
    table = pair.generator.word_table_VE.astype(np.float16).astype(np.float32) + pair.delta
    np.testing.assert_array_equal(again.discriminator.word_table_VE, table)


def test_microsoft_s_training_starts_where_this_one_ended(pair, tmp_path):
    """Its `load_state_dict` takes E_Δ from `_weight`, and leaves it zero where there is none."""
    write_pair(tmp_path / "out", pair, layout="microsoft")
    generator, discriminator = (
        torch.load(tmp_path / "out" / name, weights_only=True)
        for name in ("pytorch_model.generator.bin", "pytorch_model.bin")
    )
    summed = generator[rtd.WORDS] + discriminator[rtd.WORD_DELTA]
    assert torch.equal(summed, discriminator[rtd.WORDS])
    assert set(rtd.HEAD) <= discriminator.keys()
    assert not any(name.startswith("lm_predictions") for name in discriminator)
    stated = json.loads((tmp_path / "out" / "generator_config.json").read_text())
    assert stated["num_hidden_layers"] == 2 and stated["pos_att_type"] == "p2c|c2p"


@LAYOUT
def test_the_head_scores_tokens_as_before(layout, pair, seed, tmp_path):
    write_discriminator(tmp_path / "out", pair.discriminator, layout=layout)
    ids, mask = released.padded(seed, 30)
    scores = []
    for directory in (tmp_path / "read", tmp_path / "out"):
        model, params = deberta_jax.load_pretrained(directory, "replaced_token")
        scores.append(jax.jit(model.apply)({"params": params}, ids, mask))
    np.testing.assert_array_equal(*scores)
    assert np.std(scores[0]) > 1e-4  # not the same for every token


def test_what_is_no_layout_or_type(pair, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="layout is 'orbax'; it must be one of"):
        write_discriminator(out, pair.discriminator, layout="orbax")
    with pytest.raises(UserError, match="dtype is 'int8'; it must be one of"):
        write_generator(out, pair.generator, dtype="int8")
    with pytest.raises(UserError, match="no name for E_Δ"):
        write_discriminator(out, pair.discriminator, delta=pair.delta)
    assert not out.exists()


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
def test_an_exported_run_is_read_as_the_parameters_that_it_had(sharing, seed, tmp_path):
    objective = ReplacedTokenDetection(
        small.SMALL,
        rtd=RtdConfig(sharing=sharing),
        compute=ComputeConfig(),
        masking=MaskingConfig(),
    )
    shapes = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    models = {name: objective.params_of(params, name) for name in objective.exported}
    for name, directory in (("discriminator", "out"), ("generator", "out/generator")):
        pretrained.save(tmp_path / directory, objective.models[name], models[name])
    pair = read_pair(tmp_path / "out")
    assert pair.discriminator.config == small.SMALL
    assert pair.generator.config == objective.generator_config
    read = {
        "discriminator": replaced_token_params(pair.discriminator),
        "generator": pair.generator.params,
    }
    jax.tree.map(np.testing.assert_array_equal, read, models)
    want = params["delta"]["word_embeddings"]["embedding"] if sharing == "gdes" else 0
    if sharing != "nes":
        np.testing.assert_allclose(pair.delta, want, rtol=0, atol=1e-6)
