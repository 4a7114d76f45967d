"""The Enhanced Mask Decoder: exact where it is computed, and blind to what it predicts."""

import types

import jax
import numpy as np
import pytest

from deberta_jax.data.config import MaskingConfig
from deberta_jax.data.masking import mask_batch
from deberta_jax.model.heads import DebertaForMaskedLM
from tests.model import small


@pytest.mark.parametrize("options", small.VARIANTS.values(), ids=small.VARIANTS.keys())
def test_masked_places_only_equals_all_places(options, seed):
    """Decoding every position, then looking at the masked ones, changes nothing."""
    config = small.variant(**options)
    params, batch = small.random_params(config, seed), small.random_batch(config, seed)
    everywhere = np.broadcast_to(np.arange(40, dtype=np.int32), (4, 40))
    want = np.take_along_axis(
        np.asarray(small.logits(config, params, batch, everywhere)),
        batch["masked_positions"][..., None],
        axis=1,
    )
    np.testing.assert_allclose(small.logits(config, params, batch), want, atol=3e-5)


def test_without_emd_the_masked_places_are_the_ordinary_last_layer_s(seed):
    config = small.variant(enhanced_mask_decoder=False)
    params, batch = small.random_params(config, seed), small.random_batch(config, seed)
    names = ("input_ids", "segment_ids", "position_ids")
    hidden = small.hidden_states(config, params, *(batch[name] for name in names))
    hidden = np.take_along_axis(np.asarray(hidden), batch["masked_positions"][..., None], axis=1)
    want = DebertaForMaskedLM(config).apply(
        {"params": params},
        hidden,
        method=lambda module, x: module.lm_head(x, module.embeddings.word_embeddings),
    )
    np.testing.assert_allclose(small.logits(config, params, batch), want, atol=3e-5)


def test_emd_is_the_last_layer_twice_over_fixed_keys(seed):
    """Against the released composition: all positions, two passes, query = residual stream."""
    config = small.variant()
    params, batch = small.random_params(config, seed), small.random_batch(config, seed)

    def released(module, input_ids, segments, positions):
        hidden = module.encoder.until_last(
            module.embeddings(input_ids, positions, segments), segments
        )
        everywhere = np.broadcast_to(np.arange(40, dtype=np.int32), (4, 40))
        query = hidden + module.embeddings.position_embeddings(positions)
        for _ in range(2):
            query = module.encoder.decode(hidden, segments, query, everywhere)
        return module.lm_head(query, module.embeddings.word_embeddings)

    arguments = batch["input_ids"], batch["segment_ids"], batch["position_ids"]
    model = DebertaForMaskedLM(config)
    want = jax.jit(lambda p, *x: model.apply({"params": p}, *x, method=released))(
        params, *arguments
    )
    want = np.take_along_axis(np.asarray(want), batch["masked_positions"][..., None], axis=1)
    np.testing.assert_allclose(small.logits(config, params, batch), want, atol=3e-5)


def test_no_prediction_depends_on_which_others_are_made(seed):
    config = small.variant()
    params, batch = small.random_params(config, seed), small.random_batch(config, seed)
    whole = np.asarray(small.logits(config, params, batch))
    alone = small.logits(config, params, batch, batch["masked_positions"][:, 2:3])
    np.testing.assert_allclose(alone[:, 0], whole[:, 2], atol=3e-5)


def test_the_target_never_leaks_into_its_prediction(seed):
    """Two texts that differ only at the targets give the same logits, to the last bit."""
    config = small.variant()
    params, rng = small.random_params(config, seed), np.random.default_rng(seed)
    batch = small.random_batch(config, seed)
    ids_V = np.arange(config.vocab_size)
    vocabulary = types.SimpleNamespace(
        word_start_V=np.ones(config.vocab_size, bool),
        is_special_V=(ids_V < 4) | (ids_V == config.vocab_size - 1),
        mask_id=config.vocab_size - 1,
        num_ordinary=config.vocab_size - 5,
    )
    options = dict(
        config=MaskingConfig(max_ngram=1, mask_share=1.0, random_share=0.0),
        vocabulary=vocabulary,
        seed=seed,
        step=3,
    )
    text = np.clip(batch["input_ids"], None, config.vocab_size - 2)
    first = mask_batch(text, batch["segment_ids"], **options)
    other, rows = text.copy(), np.arange(len(text))[:, None]
    targets = first["masked_positions"]
    real = first["masked_weights"] > 0
    changed = rng.integers(4, config.vocab_size - 1, targets.shape)
    other[rows, targets] = np.where(real, changed, other[rows, targets])
    second = mask_batch(other, batch["segment_ids"], **options)
    assert np.any(first["masked_labels"] != second["masked_labels"])
    np.testing.assert_array_equal(first["masked_positions"], second["masked_positions"])
    ours = [small.logits(config, params, batch | masked) for masked in (first, second)]
    np.testing.assert_array_equal(*map(np.asarray, ours))


def test_absolute_positions_enter_only_through_emd(seed):
    config = small.variant(num_hidden_layers=2)
    params, batch = small.random_params(config, seed), small.random_batch(config, seed)
    moved = batch | {
        "position_ids": np.where(batch["segment_ids"] > 0, 1 + batch["position_ids"], 0)
    }
    with_emd = [np.asarray(small.logits(config, params, b)) for b in (batch, moved)]
    assert np.abs(with_emd[0] - with_emd[1]).max() > 1e-3
    config = small.variant(num_hidden_layers=2, enhanced_mask_decoder=False)
    without = [np.asarray(small.logits(config, params, b)) for b in (batch, moved)]
    np.testing.assert_array_equal(*without)


@pytest.mark.parametrize("options", small.VARIANTS.values(), ids=small.VARIANTS.keys())
def test_packed_documents_are_computed_as_if_alone(options, seed):
    """Each document of a packed row has the hidden states it has in a row of its own."""
    config = small.variant(**options)
    params, batch = small.random_params(config, seed), small.random_batch(config, seed)
    names = ("input_ids", "segment_ids", "position_ids")
    packed = np.asarray(small.hidden_states(config, params, *(batch[n] for n in names)))
    for row in range(2):
        for segment in (1, 2):
            inside = batch["segment_ids"][row] == segment
            alone = {name: np.zeros((4, 40), np.int32) for name in names}
            for name in names:
                alone[name][0, : inside.sum()] = batch[name][row, inside]
            single = small.hidden_states(config, params, *(alone[n] for n in names))
            np.testing.assert_allclose(packed[row, inside], single[0, : inside.sum()], atol=3e-5)
