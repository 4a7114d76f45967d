"""Released checkpoints, loaded: the numbers and the gradients of `transformers`, every tensor."""

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax.interop.files import read_tensors, write_tensors
from tests.interop import released
from tests.interop.released import FAMILIES, torch, transformers

FAMILY = pytest.mark.parametrize("family", FAMILIES)


def compiled(model):
    return jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs))


@FAMILY
@pytest.mark.parametrize("length", [7, 128, 512])
def test_hidden_states_and_every_gradient(family, length, seed, tmp_path):
    """With rows padded on the right, on the left and in the middle."""
    theirs = released.make(family, "Model", seed)
    theirs.save_pretrained(tmp_path)
    model, params = deberta_jax.load_pretrained(tmp_path)
    ours, want, gradients = released.run_both(model, params, theirs, seed, length)
    np.testing.assert_allclose(ours, want, atol=2e-5)
    for name, parameter in theirs.named_parameters():
        want = parameter.grad.numpy()
        scale = np.abs(want).max()
        if name == "embeddings.word_embeddings.weight":
            want[0] = gradients[f"deberta.{name}"][0]  # the padding row, which PyTorch skips
        error = np.abs(gradients[f"deberta.{name}"] - want).max()
        # A key's bias shifts all scores of a query alike: its gradient is zero, but for rounding.
        assert error <= 1e-4 * scale or (scale < 1e-4 and error < 1e-4), (name, error, scale)


@FAMILY
@pytest.mark.parametrize(
    "task, kind",
    [
        ("sequence_classification", "ForSequenceClassification"),
        ("token_classification", "ForTokenClassification"),
        ("question_answering", "ForQuestionAnswering"),
        ("multiple_choice", "ForMultipleChoice"),
    ],
)
def test_task_logits(family, task, kind, seed, tmp_path):
    if not hasattr(transformers, FAMILIES[family][0] + kind):
        pytest.skip("transformers has no such head for v1")
    labels = {} if task in ("question_answering", "multiple_choice") else {"num_labels": 5}
    theirs = released.make(family, kind, seed, **labels)
    theirs.save_pretrained(tmp_path)
    model, params = deberta_jax.load_pretrained(tmp_path, task)
    # Not on the left: the first token, which classifiers read, would be padding.
    ids, mask = released.padded(seed, 24, ("right", "middle", "right"))
    if task == "multiple_choice":
        ids, mask = ids.reshape(2, 2, 24), mask.reshape(2, 2, 24)
    ours = np.asarray(compiled(model)(params, ids, mask))
    with torch.no_grad():
        output = theirs(torch.tensor(ids).long(), attention_mask=torch.tensor(mask))
    if task == "question_answering":
        want = np.stack([output.start_logits.numpy(), output.end_logits.numpy()], axis=-1)
    else:
        want = output.logits.numpy()
    if task in ("question_answering", "token_classification"):
        ours, want = ours[mask.astype(bool)], want[mask.astype(bool)]
    np.testing.assert_allclose(ours, want, atol=2e-5)


@FAMILY
@pytest.mark.parametrize("legacy", [True, False], ids=["cls.predictions", "lm_predictions"])
def test_masked_lm_logits_of_both_head_layouts(family, legacy, seed, tmp_path):
    """transformers has no EMD, and its files no position table: without it, the same logits."""
    theirs = released.make(family, "ForMaskedLM", seed, legacy=legacy)
    if legacy:  # its weight is tied; its bias is one of two copies, made equal as in released files
        head = theirs.cls.predictions
        head.bias = head.decoder.bias
    theirs.save_pretrained(tmp_path)
    model, params = deberta_jax.load_pretrained(tmp_path, "masked_lm")
    assert not model.config.decodes_with_emd
    ids, mask = released.padded(seed, 40)
    ours = np.asarray(compiled(model)(params, ids, mask))
    with torch.no_grad():
        want = theirs(torch.tensor(ids).long(), torch.tensor(mask)).logits.numpy()
    seen = mask.astype(bool)
    np.testing.assert_allclose(ours[seen], want[seen], atol=5e-5)


@pytest.mark.parametrize("family", ["v2 with convolution", "v3", "own position projections"])
def test_emd_is_transformers_last_layer_twice(family, seed, tmp_path):
    """The released decoder, composed of `transformers`' own modules, at every masked position."""
    theirs = released.make(family, "ForMaskedLM", seed)
    theirs.save_pretrained(tmp_path)
    table = 0.1 * torch.randn(512, 64)
    tensors = read_tensors(tmp_path)
    tensors["deberta.embeddings.position_embeddings.weight"] = table.numpy()
    write_tensors(tensors, tmp_path)
    model, params = deberta_jax.load_pretrained(tmp_path, "masked_lm")
    assert model.config.decodes_with_emd

    ids, mask = released.padded(seed, 60)
    rng = np.random.default_rng(seed)
    length = int(mask.sum(axis=1).min())
    positions = np.sort(rng.choice(length, (2, min(9, length)))).astype(np.int32)
    arguments = ids, mask, None, positions
    ours = np.asarray(compiled(model)(params, *arguments))

    encoder, attention = theirs.deberta.encoder, torch.tensor(mask)
    with torch.no_grad():
        states = theirs.deberta(torch.tensor(ids).long(), attention, output_hidden_states=True)
        hidden = states.hidden_states[-2]
        query = hidden + table[:60]
        for _ in range(2):
            query, _ = encoder.layer[-1](
                hidden,
                encoder.get_attention_mask(attention),
                query_states=query,
                relative_pos=encoder.get_rel_pos(hidden),
                rel_embeddings=encoder.get_rel_embedding(),
            )
        logits = theirs.lm_predictions(query, theirs.deberta.embeddings.word_embeddings).numpy()
    want = np.take_along_axis(logits, positions[..., None], axis=1)
    np.testing.assert_allclose(ours, want, atol=2e-5)


def test_replaced_token_head(seed, tmp_path):
    """LN(h + h_CLS) -> dense -> GELU -> one logit, under the released names."""
    theirs = released.make("v3", "Model", seed)
    theirs.save_pretrained(tmp_path)
    tensors, modules = read_tensors(tmp_path), torch.nn
    head = {
        "LayerNorm": modules.LayerNorm(64, eps=1e-7),
        "dense": modules.Linear(64, 64),
        "classifier": modules.Linear(64, 1),
    }
    for name, module in head.items():
        for key, parameter in module.named_parameters():
            modules.init.normal_(parameter, std=0.3)
            tensors[f"mask_predictions.{name}.{key}"] = parameter.detach().numpy()
    write_tensors(tensors, tmp_path)
    model, params = deberta_jax.load_pretrained(tmp_path, "replaced_token")
    ids, mask = released.padded(seed, 30)
    ours = np.asarray(compiled(model)(params, ids, mask))
    with torch.no_grad():
        hidden = theirs(torch.tensor(ids).long(), torch.tensor(mask)).last_hidden_state
        hidden = head["dense"](head["LayerNorm"](hidden + hidden[:, :1]))
        want = head["classifier"](modules.functional.gelu(hidden))[..., 0].numpy()
    seen = mask.astype(bool)
    np.testing.assert_allclose(ours[seen], want[seen], atol=2e-5)


@FAMILY
def test_bfloat16_is_within_two_percent_and_no_worse_than_transformers(family, seed, tmp_path):
    theirs = released.make(family, "Model", seed)
    theirs.save_pretrained(tmp_path)
    ids, mask = released.padded(seed, 128)
    outputs = {}
    for dtype in ("float32", "bfloat16"):
        model, params = deberta_jax.load_pretrained(tmp_path, dtype=dtype)
        outputs[dtype] = np.asarray(compiled(model)(params, ids, mask), np.float32)
    with torch.no_grad():
        half = theirs.to(torch.bfloat16)(torch.tensor(ids).long(), torch.tensor(mask))
    half = half.last_hidden_state.float().numpy()
    seen, want = mask.astype(bool), outputs["float32"]
    norm = np.linalg.norm(want[seen])
    ours_off = np.linalg.norm((outputs["bfloat16"] - want)[seen]) / norm
    theirs_off = np.linalg.norm((half - want)[seen]) / norm
    assert ours_off <= 0.02
    assert ours_off <= theirs_off


def test_wholly_padded_rows_and_long_inputs_are_finite(seed, tmp_path):
    released.make("v3", "Model", seed).save_pretrained(tmp_path)
    model, params = deberta_jax.load_pretrained(tmp_path)
    ids, mask = released.padded(seed, 700, ("right", "left"))
    mask[2] = 0
    assert np.all(np.isfinite(compiled(model)(params, ids, mask)))
