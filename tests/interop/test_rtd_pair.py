"""A generator made of a discriminator, and a masked LM asked of one."""

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax.errors import UserError
from deberta_jax.interop.rtd_files import read_pair
from deberta_jax.interop.rtd_pair import (
    discriminator_from_params,
    make_generator,
    replaced_token_params,
)
from deberta_jax.model.heads import Deberta, DebertaForMaskedLM
from tests.interop import released, rtd
from tests.interop.released import torch

CONVOLUTION = {"conv_kernel_size": 3, "conv_act": "gelu"}


def read(files, home, **fields):
    return read_pair(rtd.write_folder(files.discriminator, 4, home, **fields)).discriminator


@pytest.mark.parametrize("family, layers", [("v3", 2), ("v3", 4), ("v2 with convolution", 3)])
def test_its_body_is_the_lower_part_of_the_discriminator_s(family, layers, seed, tmp_path):
    """Its hidden states are those of `transformers` after so many layers."""
    files = rtd.make(seed, family=family)
    fields = CONVOLUTION if family != "v3" else {}
    generator = make_generator(read(files, tmp_path, **fields), layers)
    assert generator.config.num_hidden_layers == layers and generator.config.decodes_with_emd
    theirs = released.make(family, "Model", seed, num_hidden_layers=4)
    words = torch.tensor(files.discriminator[rtd.WORDS])
    theirs.get_input_embeddings().weight.data.copy_(words)
    ids, mask = released.padded(seed, 24)
    with torch.no_grad():
        states = theirs(
            torch.tensor(ids).long(), torch.tensor(mask), output_hidden_states=True
        ).hidden_states
    ours = jax.jit(Deberta(generator.config).apply)({"params": generator.params}, ids, mask)
    seen = mask.astype(bool)
    np.testing.assert_allclose(np.asarray(ours)[seen], states[layers].numpy()[seen], atol=2e-5)


def test_its_tables_are_the_discriminator_s(seed, tmp_path):
    files = rtd.make(seed)
    tensors = make_generator(read(files, tmp_path), 2).released().tensors
    for name in (rtd.WORDS, rtd.POSITIONS):
        np.testing.assert_array_equal(tensors[name], files.discriminator[name])
    assert not any("mask_predictions" in name for name in tensors)


def test_its_head_is_the_one_in_the_discriminator_s_file(seed, tmp_path):
    files, head = rtd.make(seed), rtd.lm_head(seed)
    own = files._replace(discriminator=files.discriminator | head)
    tensors = make_generator(read(own, tmp_path), 2).released().tensors
    for name, tensor in head.items():
        np.testing.assert_array_equal(tensors[name], tensor)


def test_without_one_its_head_is_fresh(seed, tmp_path):
    """As is the position table where the file was saved without: both of the config's deviation."""
    files = rtd.make(seed)
    own = dict(files.discriminator)
    del own[rtd.POSITIONS]
    discriminator = read(files._replace(discriminator=own), tmp_path)
    params = make_generator(discriminator, 2, seed).params
    head = params["lm_head"]
    assert not np.any(head["bias"]) and not np.any(head["dense"]["bias"])
    assert np.all(head["norm"]["scale"] == 1) and not np.any(head["norm"]["bias"])
    drawn = (head["dense"]["kernel"], params["embeddings"]["position_embeddings"]["embedding"])
    for array in drawn:
        assert 0.017 < np.std(array) < 0.023
    other = make_generator(discriminator, 2, seed + 1).params["lm_head"]["dense"]["kernel"]
    assert np.all(other != head["dense"]["kernel"])
    ids = np.random.default_rng(seed).integers(4, 150, (2, 12)).astype(np.int32)
    model = DebertaForMaskedLM(make_generator(discriminator, 2).config)
    logits = jax.jit(model.apply)({"params": params}, ids)
    assert logits.shape == (2, 12, 150) and np.all(np.isfinite(logits))


def test_the_model_s_parameters_and_back(seed, tmp_path):
    files = rtd.make(seed)
    discriminator = read(files, tmp_path)
    params = replaced_token_params(discriminator)
    _, want = deberta_jax.load_pretrained(tmp_path, "replaced_token")
    jax.tree.map(np.testing.assert_array_equal, params, want)
    positions = files.discriminator[rtd.POSITIONS]
    back = discriminator_from_params(discriminator.config, params, positions)
    jax.tree.map(np.testing.assert_array_equal, back, discriminator)


def test_a_head_that_the_file_lacks_is_initialised(seed, tmp_path):
    files = rtd.make(seed)
    own = {name: x for name, x in files.discriminator.items() if name not in rtd.HEAD}
    discriminator = read(files._replace(discriminator=own), tmp_path)
    params = replaced_token_params(discriminator, seed)
    head = params.pop("mask_predictions")
    assert 0.017 < np.std(head["dense"]["kernel"]) < 0.023 and not np.any(head["dense"]["bias"])
    _, want = deberta_jax.load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, want)


@pytest.mark.parametrize("layers", [0, 5])
def test_more_layers_than_there_are(layers, seed, tmp_path):
    with pytest.raises(UserError, match=f"a generator of {layers} layers .* 1 to 4"):
        make_generator(read(rtd.make(seed), tmp_path), layers)
    files = rtd.make(seed, family="v2 with convolution")
    discriminator = read(files, tmp_path, **CONVOLUTION)
    with pytest.raises(UserError, match="2 to 4"):
        make_generator(discriminator, 1)


def test_a_head_of_another_vocabulary_is_refused(seed, tmp_path):
    files, head = rtd.make(seed), rtd.lm_head(seed)
    head["lm_predictions.lm_head.bias"] = np.zeros(151, np.float32)
    own = files._replace(discriminator=files.discriminator | head)
    with pytest.raises(UserError, match=r"misshapen: lm_predictions\.lm_head\.bias \(151,\)"):
        make_generator(read(own, tmp_path), 2)


def test_a_masked_lm_of_a_discriminator_is_refused_unless_its_head_is_fresh(seed, tmp_path):
    files, head = rtd.make(seed), rtd.lm_head(seed)
    rtd.write_folder(files.discriminator | head, 4, tmp_path)
    with pytest.raises(UserError, match="belongs to the generator's body") as failure:
        deberta_jax.load_pretrained(tmp_path, "masked_lm")
    assert "\n" not in str(failure.value)
    _, params = deberta_jax.load_pretrained(tmp_path, "masked_lm", new=["lm_predictions."])
    fresh = params["lm_head"]["dense"]["kernel"]
    assert 0.017 < np.std(fresh) < 0.023 and not np.any(params["lm_head"]["bias"])
    words = params["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_array_equal(words, files.discriminator[rtd.WORDS])
    # Whoever leaves the other head out by name has one body with two heads, and knows it.
    _, params = deberta_jax.load_pretrained(tmp_path, "masked_lm", ignore=["mask_predictions."])
    kernel = head["lm_predictions.lm_head.dense.weight"].T
    np.testing.assert_array_equal(params["lm_head"]["dense"]["kernel"], kernel)
    for task in (None, "replaced_token"):
        deberta_jax.load_pretrained(tmp_path, task)
