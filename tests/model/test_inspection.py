"""Attention scores by part, against the attention itself, `transformers`, and the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.model import inspection
from deberta_jax.model.attention import DisentangledSelfAttention
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.model.positions import distance_rows
from tests.kernels import formula as reference_attention
from tests.model import small

SEEN = {
    "v3": {},
    "v2 with convolution": dict(conv_kernel_size=3),
    "v1": small.V1,
    "v2 p2c only": dict(pos_att_type=("p2c",)),
    "auto-regressive": dict(causal=True),
    "absolute positions only": dict(pos_att_type=(), position_biased_input=True),
}
ALL = (0, 1, 2, 3)


def inputs(config, seed, length=24):
    """(params, ids, segments): two documents and some padding in each row."""
    batch = small.random_batch(config, seed, batch=2, length=length)
    return small.random_params(config, seed), batch["input_ids"], batch["segment_ids"]


@functools.partial(jax.jit, static_argnums=0)
def attend(config, given, probabilities):
    """Probabilities times values, and what the attention module says: both [B, L, H, D]."""
    attention = DisentangledSelfAttention(config)
    variables = {"params": given.params["attention"]}
    values = attention.apply(variables, given.hidden_BLE, 2, method="_project")
    batch, length = given.segments_BL.shape
    places = np.broadcast_to(np.arange(length), (batch, length))
    want = attention.apply(
        variables,
        given.hidden_BLE,
        given.segments_BL,
        given.relative_RE,
        distance_rows(config, length, length),
        given.queries_BLE,
        None if given.queries_BLE is None else places,
    )
    return jnp.einsum("BHQK,BKHD->BQHD", probabilities, values), want


@pytest.mark.parametrize("options", SEEN.values(), ids=SEEN.keys())
def test_the_parts_add_up_to_the_attention_of_every_layer(options, seed):
    config = small.variant(**options)
    params, ids, segments = inputs(config, seed)
    layers = list(inspection.layer_inputs(config, params, ids, segments))
    assert len(layers) == config.num_hidden_layers
    for given in layers:
        scores = inspection.attention_scores(config, given, ALL)
        assert set(scores) == {"c2c", *config.pos_att_type}
        probabilities = inspection.attention_probabilities(config, scores, segments)
        ours, want = attend(config, given, probabilities)
        np.testing.assert_allclose(ours, want, atol=1e-5)


def test_the_decoder_s_passes_are_the_model_s(seed):
    params, ids, segments = inputs(small.SMALL, seed)
    *_, last = inspection.layer_inputs(small.SMALL, params, ids, segments)
    passes = list(inspection.decoder_inputs(small.SMALL, params, last))
    assert len(passes) == 2
    for given in passes:
        scores = inspection.attention_scores(small.SMALL, given, ALL)
        probabilities = inspection.attention_probabilities(small.SMALL, scores, segments)
        ours, want = attend(small.SMALL, given, probabilities)
        np.testing.assert_allclose(ours, want, atol=1e-5)
    model = DebertaForMaskedLM(small.SMALL)
    decode = jax.jit(lambda *x: model.apply({"params": params}, *x, None, None, method="_decode"))
    decoded = inspection._run_layer(small.SMALL, passes[-1])
    np.testing.assert_allclose(decoded, decode(ids, segments), atol=1e-5)


@pytest.mark.parametrize("options", [{}, small.V1], ids=["v3", "v1"])
def test_the_sum_is_the_formula_in_float64(options, seed):
    """One head of the last layer, its projections made here from the layer's own parameters."""
    config = small.variant(**options)
    params, ids, segments = inputs(config, seed, length=40)
    *_, given = inspection.layer_inputs(config, params, ids, segments)
    head = int(np.random.default_rng(seed).integers(4))
    scores = inspection.attention_scores(config, given, (head,))
    own = jax.tree.map(lambda x: np.asarray(x, np.float64), given.params["attention"])
    hidden, relative = (np.asarray(x, np.float64) for x in (given.hidden_BLE, given.relative_RE))
    kernel = own["qkv_kernel"][:, :, head]
    if config.share_att_key:
        query_bias, key_bias, _ = own["qkv_bias"][:, head]
        relative_query = relative @ kernel[:, 0] + query_bias
        relative_key = relative @ kernel[:, 1] + key_bias
    else:
        query_bias, key_bias = own["q_bias"][head], 0.0
        relative_query = relative @ own["pos_query_kernel"][:, head] + own["pos_query_bias"][head]
        relative_key = relative @ own["pos_key_kernel"][:, head]
    query, key = hidden @ kernel[:, 0] + query_bias, hidden @ kernel[:, 1] + key_bias
    buckets = config.relative_span, config.position_buckets, config.max_relative_positions
    want = np.zeros((3, *segments.shape, segments.shape[1]))
    for row in range(len(ids)):
        for i in range(40):
            for j in range(40):
                r = reference_attention.row(i, j, *buckets)
                want[0, row, i, j] = query[row, i] @ key[row, j]
                want[1, row, i, j] = query[row, i] @ relative_key[r]
                want[2, row, i, j] = relative_query[r] @ key[row, j]
    want /= np.sqrt(config.head_size * 3)
    for part, values in zip(("c2c", "c2p", "p2c"), want, strict=True):
        np.testing.assert_allclose(scores[part][:, 0], values, atol=2e-5, err_msg=part)


@pytest.mark.parametrize("family", ["v1", "v2 with convolution", "v3"])
def test_the_probabilities_are_those_of_transformers(family, seed, tmp_path):
    released = pytest.importorskip("tests.interop.released")
    import deberta_jax

    theirs = released.make(family, "Model", seed, attn_implementation="eager")
    theirs.save_pretrained(tmp_path)
    model, params = deberta_jax.load_pretrained(tmp_path)
    ids, mask = released.padded(seed, 32)
    with released.torch.no_grad():
        tensors = (released.torch.tensor(x) for x in (ids, mask))
        want = theirs(*tensors, output_attentions=True).attentions
    pairs = zip(inspection.layer_inputs(model.config, params, ids, mask), want, strict=True)
    for given, theirs_BHQK in pairs:
        scores = inspection.attention_scores(model.config, given, (0, 1))
        ours = np.asarray(inspection.attention_probabilities(model.config, scores, mask))
        seen = np.broadcast_to(mask[:, None, :, None] > 0, ours.shape)
        np.testing.assert_allclose(ours[seen], theirs_BHQK.numpy()[seen], atol=1e-5)
