"""Log-likelihoods of sentences against one plain call for each masked token."""

import jax
import numpy as np
import pytest

from deberta_jax.evaluation.likelihood import Marks, log_likelihoods
from deberta_jax.interop import pretrained
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.parallel.mesh import MeshConfig, make_mesh
from tests.model import small

MASK = 119  # the last id of the small model
LENGTHS = (3, 9, 4, 14, 8, 5)  # [CLS] and [SEP] included: two widths of batches, several batches


def random_sentences(seed):
    rng = np.random.default_rng(seed)
    ids = [np.r_[1, rng.integers(4, MASK, n - 2), 2].astype(np.int32) for n in LENGTHS]
    return ids, Marks(MASK, rng.random(120) < 0.5)


def scores(config, params, sentences, method, marks):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return log_likelihoods(
        DebertaForMaskedLM(config), params, sentences, method, marks, mesh, batch_tokens=64
    )


def one_at_a_time(sentences, method, marks, logits_of):
    """For each token a copy of its sentence, made by hand; `logits_of(ids)` gives [L, V]."""
    totals = []
    for ids in sentences:
        total = 0.0
        for place in range(1, len(ids) - 1):
            copy = ids.copy()
            copy[place] = MASK
            for later in range(place + 1, len(ids) - 1):
                if method == "pll" or marks.word_start_V[ids[later]]:
                    break
                copy[later] = MASK
            logits_V = logits_of(copy)[place].astype(float)
            total += logits_V[ids[place]] - np.log(np.exp(logits_V).sum())
        totals.append(total)
    return totals


def plain_calls(config, params):
    def logits_of(ids):
        row = np.zeros((1, 16), np.int32)
        row[0, : len(ids)] = ids
        mask, places = np.int32(row > 0), np.arange(16, dtype=np.int32)[None]
        batch = {"input_ids": row, "segment_ids": mask, "position_ids": places * mask}
        return np.asarray(small.logits(config, params, batch, places))[0]

    return logits_of


@pytest.mark.parametrize("method", ["pll", "pll-word-l2r"])
def test_pseudo_log_likelihood_is_one_masked_token_at_a_time(method, seed):
    config = small.variant(num_hidden_layers=2)
    assert config.decodes_with_emd
    params, (sentences, marks) = small.random_params(config, seed), random_sentences(seed)
    ours = scores(config, params, sentences, method, marks)
    want = one_at_a_time(sentences, method, marks, plain_calls(config, params))
    np.testing.assert_allclose(ours, want, rtol=1e-5)


def test_the_two_methods_differ_only_within_words(seed):
    """Words of one token each: nothing else to mask."""
    config = small.variant(num_hidden_layers=2)
    params, (sentences, _) = small.random_params(config, seed), random_sentences(seed)
    starts = Marks(MASK, np.ones(120, bool))
    first, second = (scores(config, params, sentences, m, starts) for m in ("pll", "pll-word-l2r"))
    np.testing.assert_array_equal(first, second)
    whole = Marks(MASK, np.zeros(120, bool))
    other = scores(config, params, sentences, "pll-word-l2r", whole)
    longer = np.array(LENGTHS) > 3
    assert np.all(np.abs(other - first)[longer] > 1e-4) and np.all(other[~longer] == first[~longer])


def test_a_sentence_without_blanks_is_not_one_word(seed):
    """Of a script without blanks, more than four tokens; of others, more than 32."""
    config = small.variant(num_hidden_layers=2)
    params, (sentences, _) = small.random_params(config, seed), random_sentences(seed)
    nowhere, everywhere = np.zeros(120, bool), np.ones(120, bool)
    whole, unspaced = Marks(MASK, nowhere), Marks(MASK, nowhere, everywhere)
    alone = scores(config, params, sentences, "pll", whole)
    together = scores(config, params, sentences, "pll-word-l2r", whole)
    ours = scores(config, params, sentences, "pll-word-l2r", unspaced)
    short = np.array(LENGTHS) - 2 <= 4
    assert 0 < short.sum() < len(short)
    np.testing.assert_array_equal(ours[short], together[short])
    np.testing.assert_array_equal(ours[~short], alone[~short])


def test_pseudo_log_likelihood_is_that_of_transformers(seed, tmp_path):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    config = small.variant(num_hidden_layers=2, enhanced_mask_decoder=False)
    params, (sentences, marks) = small.random_params(config, seed), random_sentences(seed)
    pretrained.save(tmp_path, DebertaForMaskedLM(config), params)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)

    def logits_of(ids):
        with torch.no_grad():
            return theirs(torch.tensor(ids)[None].long()).logits[0].numpy()

    for method in ("pll", "pll-word-l2r"):
        want = one_at_a_time(sentences, method, marks, logits_of)
        ours = scores(config, params, sentences, method, marks)
        np.testing.assert_allclose(ours, want, rtol=1e-5)


def test_log_likelihood_of_a_causal_model_is_its_tokens_one_after_another(seed):
    """Each from a call with the sentence cut short after the token before it."""
    config = small.variant(num_hidden_layers=2, causal=True)
    params, (sentences, marks) = small.random_params(config, seed), random_sentences(seed)
    ours, logits_of = scores(config, params, sentences, "ll", marks), plain_calls(config, params)
    want = []
    for ids in sentences:
        rows = [logits_of(ids[:place])[place - 1] for place in range(1, len(ids) - 1)]
        rows = np.array(rows, float)
        chosen = rows[np.arange(len(rows)), ids[1:-1]]
        want.append(np.sum(chosen - np.log(np.exp(rows).sum(axis=1))))
    np.testing.assert_allclose(ours, want, rtol=1e-5)
