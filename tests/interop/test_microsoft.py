"""Released checkpoints in Microsoft's own modules and in ours: encoder, decoder, long inputs."""

import jax
import numpy as np
import pytest

import deberta_jax
from tests.interop import microsoft, released
from tests.interop.microsoft import FAMILIES, da_utils, torch

FAMILY = pytest.mark.parametrize("family", FAMILIES)


def hidden_states(path, ids, mask):
    model, params = deberta_jax.load_pretrained(path)
    return np.asarray(jax.jit(lambda p: model.apply({"params": p}, ids, mask))(params))


def assert_close(ours, want, mask):
    seen = mask.astype(bool)
    np.testing.assert_allclose(ours[seen], want.numpy()[seen], rtol=0, atol=2e-5)


@FAMILY
@pytest.mark.parametrize("length, side", [(7, "left"), (128, "middle"), (512, "right")])
def test_encoder(family, length, side, seed, tmp_path):
    theirs = microsoft.make(family, seed, tmp_path)
    ids, mask = released.padded(seed, length, [side])
    assert_close(hidden_states(tmp_path, ids, mask), theirs.layers(ids, mask)[-1], mask)


@FAMILY
@pytest.mark.parametrize("side", [None, "right", "middle"])
def test_enhanced_mask_decoder(family, side, seed, tmp_path):
    """Logits at random masked positions of the released decoder, made of the package's modules."""
    theirs = microsoft.make(family, seed, tmp_path)
    model, params = deberta_jax.load_pretrained(tmp_path, "masked_lm")
    assert model.config.decodes_with_emd
    ids, mask = released.padded(seed, 60, [side or "right"])
    if side is None:
        mask[:] = 1
    rng = np.random.default_rng(seed)
    count = min(9, int(mask.sum(axis=1).min()))
    rows = [rng.choice(np.flatnonzero(row), count, replace=False) for row in mask]
    positions = np.stack(rows).astype(np.int32)
    ours = jax.jit(lambda p: model.apply({"params": p}, ids, mask, None, positions))(params)
    want = np.take_along_axis(theirs.logits(ids, mask).numpy(), positions[..., None], axis=1)
    np.testing.assert_allclose(ours, want, rtol=0, atol=2e-5)


def test_long_inputs_share_the_outermost_rows_of_v1(seed, tmp_path):
    theirs = microsoft.make("v1", seed, tmp_path)
    ids, mask = released.padded(seed, 700)
    assert_close(hidden_states(tmp_path, ids, mask), theirs.layers(ids, mask)[-1], mask)


def test_long_inputs_share_the_outermost_buckets(seed, tmp_path):
    """As Microsoft's later code, which clamps distances before the very buckets of 0.1.12.

    0.1.12 clamps only the buckets, which sends keys 512 and more positions ahead to a row of their
    own, one that no input as long as the model was trained on ever reads.
    """
    theirs = microsoft.make("v3", seed, tmp_path)
    ids, mask = released.padded(seed, 700)
    distance = np.subtract.outer(np.arange(700), np.arange(700)).clip(-511, 511)
    buckets = da_utils.make_log_bucket_position(distance, 256, 512)
    want = theirs.layers(ids, mask, torch.tensor(buckets)[None])[-1]
    assert_close(hidden_states(tmp_path, ids, mask), want, mask)
