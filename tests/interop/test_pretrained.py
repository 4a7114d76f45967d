"""Exports against `transformers` itself: keys, hidden states, masked-LM logits."""

import numpy as np
import pytest

from deberta_jax.interop import pretrained
from deberta_jax.model.heads import DebertaForMaskedLM
from tests.model import small
from tests.model.small import VARIANTS

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_transformers_gives_the_same_hidden_states(options, seed, tmp_path):
    config = small.variant(**options)
    params = small.random_params(config, seed)
    pretrained.save(tmp_path, DebertaForMaskedLM(config), params)
    theirs, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"], info
    length = 100
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, config.vocab_size, (3, length)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, rng.integers(3, length) :] = 0
    mask[2, : rng.integers(1, length - 3)] = 0  # padding on the left
    ours = small.hidden_states(config, params, ids, mask)
    with torch.no_grad():
        want = theirs(torch.tensor(ids).long(), torch.tensor(mask)).last_hidden_state.numpy()
    valid = mask.astype(bool)
    np.testing.assert_allclose(np.asarray(ours)[valid], want[valid], atol=2e-5)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_transformers_gives_the_same_masked_lm_logits_without_emd(options, seed, tmp_path):
    config = small.variant(enhanced_mask_decoder=False, **options)
    params = small.random_params(config, seed)
    pretrained.save(tmp_path, DebertaForMaskedLM(config), params)
    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, config.vocab_size, (2, 40)).astype(np.int32)
    order = rng.permuted(np.tile(np.arange(40, dtype=np.int32), (2, 1)), axis=1)
    positions = np.sort(order[:, :6])
    positions = np.broadcast_to(np.arange(40, dtype=np.int32), ids.shape)
    batch = {"input_ids": ids, "segment_ids": np.ones_like(ids), "position_ids": positions}
    ours = small.logits(config, params, batch, positions)
    with torch.no_grad():
        logits = theirs(torch.tensor(ids).long(), torch.ones(ids.shape)).logits.numpy()
    want = np.take_along_axis(logits, positions[..., None], axis=1)
    np.testing.assert_allclose(ours, want, atol=5e-5)
