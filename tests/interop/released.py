"""Real `transformers` models with random weights, for tests that hold ours to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.interop import pretrained

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")

_SIZES = dict(
    vocab_size=150,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=96,
    max_position_embeddings=512,
    type_vocab_size=0,
    layer_norm_eps=1e-7,
    relative_attention=True,
    position_biased_input=False,
    pooler_hidden_size=64,
    # As in the published files: "p2c|c2p".
    pos_att_type="p2c|c2p",
    legacy=False,
)
_V2 = dict(
    position_buckets=256, max_relative_positions=-1, norm_rel_ebd="layer_norm", share_att_key=True
)
FAMILIES = {
    "v1": ("Deberta", dict(max_relative_positions=-1)),
    "v2 with convolution": ("DebertaV2", dict(_V2, conv_kernel_size=3, conv_act="gelu")),
    "v3": ("DebertaV2", _V2),
    "own position projections": ("DebertaV2", dict(_V2, share_att_key=False)),
}


def make(family: str, kind: str, seed: int, **options):
    """A model of `transformers`, its weights, norms and biases all random."""
    name, settings = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**(_SIZES | settings | options))
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}{kind}")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            mean = 1.0 if key.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(mean + 0.1 * torch.randn(parameter.shape))
    return model


# Where padding may stand.
SIDES = ("right", "left", "middle")


def padded(seed: int, length: int, sides=("right",)):
    """(ids, mask) of random tokens: a whole row, then one padded on each of `sides`."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, 150, (1 + len(sides), length)).astype(np.int32)
    mask = np.ones_like(ids)
    for row, side in enumerate(sides, 1):
        first, last = np.sort(rng.choice(np.arange(2, length), 2, replace=False))
        part = {"right": np.s_[last:], "left": np.s_[:first], "middle": np.s_[first:last]}[side]
        mask[row, part] = 0
    return ids, mask


def run_both(model, params, theirs, seed: int, length: int):
    """Ours and theirs on the same padded rows, and the gradients of a random sum of the outputs.

    Returns (ours, want, gradients): hidden states of the visible tokens, and our gradients under
    the released names; theirs are left in their parameters' `grad`.
    """
    ids, mask = padded(seed, length, SIDES)
    weight = np.random.default_rng(seed).normal(size=(*ids.shape, 64)) * mask[..., None]
    weight = weight.astype(np.float32)

    def loss(params):
        hidden = model.apply({"params": params}, ids, mask)
        return jnp.sum(hidden * weight), hidden

    gradients, ours = jax.jit(jax.grad(loss, has_aux=True))(params)
    theirs.zero_grad()
    want = theirs(torch.tensor(ids).long(), torch.tensor(mask)).last_hidden_state
    (want * torch.tensor(weight)).sum().backward()
    seen = mask.astype(bool)
    gradients = pretrained.to_state_dict(model, gradients)
    return np.asarray(ours)[seen], want.detach().numpy()[seen], gradients
