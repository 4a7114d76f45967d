"""Auto-regressive modelling: blind to the future, and its numbers those of others."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.interop import pretrained
from deberta_jax.interop.released import read_released
from deberta_jax.model.encoder import Embeddings
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.objectives.clm import CausalLanguageModelling, next_tokens
from deberta_jax.objectives.mlm import MaskedLanguageModelling
from deberta_jax.objectives.mlm_clm import MaskedAndCausalLanguageModelling, unmasked
from tests.model import small

VARIANTS = {
    "v2, EMD": dict(conv_kernel_size=3),
    "v1, absolute positions at the input": dict(small.V1, position_biased_input=True),
}


def text_batch(config, seed):
    """A packed batch with nothing hidden."""
    batch = small.random_batch(config, seed)
    return {name: batch[name] for name in ("input_ids", "segment_ids", "position_ids")}


def evaluated(objective, params, batch):
    """Metrics of one batch."""
    weights = objective.weights(batch)
    _, sums = jax.jit(lambda p: objective.loss(p, batch, weights, None, train=False))(params)
    return {name: float(x) for name, x in objective.summarize(sums, weights).items()}


def moved_logits(config, params, batch, places_BP):
    """Logits as a function of what is added to the embeddings."""

    def logits(delta_BLE):
        def moved(call, args, kwargs, context):
            result = call(*args, **kwargs)
            added = isinstance(context.module, Embeddings) and context.method_name == "__call__"
            return result + delta_BLE if added else result

        with nn.intercept_methods(moved):
            return DebertaForMaskedLM(config).apply(
                {"params": params}, *batch.values(), masked_positions_BP=places_BP
            )

    return logits


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_no_token_sees_a_later_one_or_another_document(options, seed):
    """By the gradient of the logits of all places up to one, and of one place by itself."""
    config = small.variant(num_hidden_layers=2, causal=True, **options)
    params, batch = small.random_params(config, seed), text_batch(config, seed)
    segments = batch["segment_ids"]
    # In the second document, or in the only one that is long enough.
    row, document = next((r, d) for r in range(4) for d in (2, 1) if (segments[r] == d).sum() > 8)
    inside = np.flatnonzero(segments[row] == document)
    now = inside[4]
    past = (segments[row] == document) & (np.arange(40) <= now)

    one_place = np.full((4, 1), now, np.int32)
    everywhere = moved_logits(config, params, batch, None)
    at_one = moved_logits(config, params, batch, one_place)

    def squares(delta_BLE):
        return (
            jnp.sum(everywhere(delta_BLE)[row, np.flatnonzero(past)] ** 2),
            jnp.sum(at_one(delta_BLE)[row] ** 2),
        )

    for gradient in jax.jit(jax.jacrev(squares))(jnp.zeros((4, 40, config.hidden_size))):
        size_BL = np.abs(np.asarray(gradient)).max(axis=-1)
        assert np.all(size_BL[row, past] > 0)
        size_BL[row, past] = 0
        assert not np.any(size_BL)


@pytest.mark.parametrize("causal", [False, True])
def test_all_places_in_order_are_each_place_by_itself(causal, seed):
    """Two ways through the attention kernels: queries in order, and queries anywhere."""
    config = small.variant(num_hidden_layers=1, causal=causal)
    params, batch = small.random_params(config, seed), text_batch(config, seed)
    whole = small.logits(config, params, batch | {"masked_positions": None})
    places = np.random.default_rng(seed).integers(0, 40, (4, 7)).astype(np.int32)
    some = small.logits(config, params, batch, places)
    np.testing.assert_allclose(
        some, np.take_along_axis(np.asarray(whole), places[..., None], axis=1), atol=3e-5
    )


def test_targets_are_the_text_after_each_token():
    batch = {
        "input_ids": np.array([[1, 10, 11, 2, 1, 12, 13, 2, 0, 0], [1, 14, 2] + [0] * 7]),
        "segment_ids": np.array([[1, 1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 1] + [0] * 7]),
    }
    labels, weights = next_tokens(batch)
    assert np.asarray(labels)[np.asarray(weights) > 0].tolist() == [10, 11, 12, 13, 14]


def test_perplexity_is_that_of_the_logits(seed):
    """And the baseline that of the frequencies; both by NumPy, token by token."""
    config = small.variant(num_hidden_layers=1, causal=True)
    params, batch = small.random_params(config, seed), text_batch(config, seed)
    counts = np.random.default_rng(seed).integers(0, 50, config.vocab_size)
    ours = evaluated(CausalLanguageModelling(config, counts), params, batch)
    logits = np.asarray(small.logits(config, params, batch | {"masked_positions": None}), float)
    losses, baseline, right = [], [], []
    for row in range(4):
        for document in (1, 2):
            # [CLS] and every token but the last, [SEP], and each predicts the next.
            places = np.flatnonzero(batch["segment_ids"][row] == document)
            for place, after in itertools.pairwise(places[:-1]):
                label = batch["input_ids"][row, after]
                exponents = np.exp(logits[row, place])
                losses.append(-np.log(exponents[label] / exponents.sum()))
                baseline.append(-np.log((counts[label] + 1) / (counts + 1).sum()))
                right.append(np.argmax(exponents) == label)
    assert ours["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    assert ours["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert ours["unigram_loss"] == pytest.approx(np.mean(baseline), rel=1e-5)
    assert ours["clm_accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("options", [dict(enhanced_mask_decoder=False), {}], ids=["", "EMD"])
def test_perplexity_is_that_of_transformers_under_a_triangular_mask(options, seed, tmp_path):
    """An export, run by `transformers`' own encoder as docs/language_modelling.md shows."""
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    config = small.variant(num_hidden_layers=2, causal=True, **options)
    params, batch = small.random_params(config, seed), text_batch(config, seed)
    ours = evaluated(CausalLanguageModelling(config), params, batch)
    pretrained.save(tmp_path, DebertaForMaskedLM(config), params)
    assert read_released(tmp_path).config == config

    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"]
    ids, segments = (torch.tensor(batch[name]) for name in ("input_ids", "segment_ids"))
    seen = torch.tril(segments[:, :, None] == segments[:, None]) * (segments > 0)[:, None]
    embeddings, encoder = theirs.deberta.embeddings, theirs.deberta.encoder
    with torch.no_grad():
        states = encoder(embeddings(ids, mask=segments > 0), seen, output_hidden_states=True)
        hidden = states.last_hidden_state
        if config.decodes_with_emd:
            table = torch.tensor(
                np.asarray(params["embeddings"]["position_embeddings"]["embedding"])
            )
            keys = states.hidden_states[-2]
            hidden = keys + torch.tensor(table[batch["position_ids"]])
            for _ in range(2):
                hidden, _ = encoder.layer[-1](
                    keys,
                    encoder.get_attention_mask(seen),
                    query_states=hidden,
                    relative_pos=encoder.get_rel_pos(keys),
                    rel_embeddings=encoder.get_rel_embedding(),
                )
        logits = theirs.cls(hidden)
    labels, weights = (torch.tensor(np.asarray(x)) for x in next_tokens(batch))
    losses = torch.nn.functional.cross_entropy(logits.mT, labels.long(), reduction="none")
    want = torch.exp((losses * weights).sum() / weights.sum())
    assert ours["perplexity"] == pytest.approx(float(want), rel=1e-4)


def test_the_loss_of_both_is_the_sum_of_its_parts(seed):
    """On the text that was there before its targets were hidden."""
    config = small.variant(num_hidden_layers=1)
    params, batch = small.random_params(config, seed), small.random_batch(config, seed)
    text = text_batch(config, seed)
    rows, entries = np.nonzero(batch["masked_weights"])
    places = batch["masked_positions"][rows, entries]
    text["input_ids"] = batch["input_ids"].copy()
    text["input_ids"][rows, places] = batch["masked_labels"][rows, entries]
    assert np.any(text["input_ids"] != batch["input_ids"])
    restored = jax.jit(unmasked)(batch)
    jax.tree.map(np.testing.assert_array_equal, dict(sorted(restored.items())), text)

    counts = np.arange(config.vocab_size)
    both = evaluated(MaskedAndCausalLanguageModelling(config, counts), params, batch)
    masked = evaluated(MaskedLanguageModelling(config, counts), params, batch)
    config = small.variant(num_hidden_layers=1, causal=True)
    causal = evaluated(CausalLanguageModelling(config, counts), params, text)
    for name in ("loss", "unigram_loss"):
        assert both[name] == pytest.approx(masked[name] + causal[name], rel=1e-6)
        assert both[f"mlm_{name}"] == pytest.approx(masked[name], rel=1e-6)
        assert both[f"clm_{name}"] == pytest.approx(causal[name], rel=1e-6)
    assert both["perplexity"] == pytest.approx(causal["perplexity"], rel=1e-6)
    assert both["mlm_accuracy"] == masked["mlm_accuracy"]


def test_a_model_of_the_other_kind_is_refused():
    with pytest.raises(UserError, match=r"model\.causal is False; objective 'clm'"):
        CausalLanguageModelling(small.variant())
    for objective in (MaskedLanguageModelling, MaskedAndCausalLanguageModelling):
        with pytest.raises(UserError, match=r"model\.causal is True; objective 'mlm'"):
            objective(small.variant(causal=True))
