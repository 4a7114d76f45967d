"""Microsoft's own DeBERTa 0.1.12 from PyPI with random weights, for tests that hold ours to it."""

import collections
import collections.abc
import json
import types
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.interop.files import write_tensors

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
pytest.importorskip("DeBERTa", reason="DeBERTa==0.1.12 is not installed")

# The package is of early 2021: it imports an alias that Python 3.10 dropped ...
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(collections, "Sequence", collections.abc.Sequence, raising=False)
    from DeBERTa import deberta
    from DeBERTa.deberta import da_utils

# ... and calls np.int, which numpy 1.24 dropped. This view of numpy is for that one module.
da_utils.np = types.SimpleNamespace(**{**vars(np), "int": int})

# As in the released config.json files, which name no model_type; only the sizes are smaller.
_SIZES = {
    "vocab_size": 150,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "padding_idx": 0,
    "relative_attention": True,
    "position_biased_input": False,
    "max_relative_positions": -1,
    "pos_att_type": "c2p|p2c",
}
_V2 = {"position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
FAMILIES = {
    "v1": {},
    "v1 of a short span": {"max_relative_positions": 40},
    "v2 with convolution": _V2 | {"conv_kernel_size": 3, "conv_act": "gelu"},
    "v3": _V2,
    "own position projections": _V2 | {"share_att_key": False},
}


class _Head(torch.nn.Module):
    """The released lm_head; the package's own is unfinished: it names a class that is nowhere."""

    def __init__(self, config):
        super().__init__()
        self.dense = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = deberta.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = torch.nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states, table):
        states = deberta.MaskedLayerNorm(self.LayerNorm, deberta.ACT2FN["gelu"](self.dense(states)))
        return states @ table.T + self.bias


class Model(deberta.NNModule):
    """The package's encoder, and the Enhanced Mask Decoder of its modules, by released names."""

    def __init__(self, config):
        super().__init__(config)
        self.deberta = deberta.DeBERTa(config)
        # The package drops this table where its embeddings do not add it; the files hold it.
        embeddings = self.deberta.embeddings
        embeddings.position_embeddings = torch.nn.Embedding(
            config.max_position_embeddings, config.hidden_size
        )
        self.lm_predictions = torch.nn.ModuleDict({"lm_head": _Head(config)})
        self.apply(self.init_weights)

    def layers(self, ids, mask, relative_pos=None) -> list:
        """The hidden states after each layer; `relative_pos` replaces the package's own."""
        ids, mask = torch.tensor(ids).long(), torch.tensor(mask)
        # It looks up positions whenever there is a table, and then does not add them.
        embedded = self.deberta.embeddings(ids, mask=mask, position_ids=torch.zeros_like(ids))
        return self.deberta.encoder(embedded, mask, relative_pos=relative_pos)

    def logits(self, ids, mask):
        """The last layer twice, on queries that begin as positions added to layer n - 1."""
        encoder, embeddings = self.deberta.encoder, self.deberta.embeddings
        hidden = self.layers(ids, mask)[-2]
        query = embeddings.position_embeddings.weight[: hidden.shape[1]] + hidden
        for _ in range(2):
            query = encoder.layer[-1](
                hidden,
                encoder.get_attention_mask(torch.tensor(mask)),
                query_states=query,
                relative_pos=encoder.get_rel_pos(hidden),
                rel_embeddings=encoder.get_rel_embedding(),
            )
        return self.lm_predictions["lm_head"](query, embeddings.word_embeddings.weight)


def make(family: str, seed: int, directory: Path) -> Model:
    """A model and its files in `directory`, as released: every weight, norm and bias random."""
    config = _SIZES | FAMILIES[family]
    model = Model(deberta.ModelConfig.from_dict(config)).eval().requires_grad_(False)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in _released_shapes(model, is_v1=family.startswith("v1")).items():
        mean = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        tensors[name] = (mean + 0.1 * rng.normal(size=shape)).astype(np.float32)
    # The package itself splits v1's joint projection, and leaves zero the biases that v1 lacks.
    model.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()})
    write_tensors(tensors, directory)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return model


def _released_shapes(model: Model, is_v1: bool) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if not is_v1:
        return shapes
    width = model.config.hidden_size
    renamed = {
        "query_proj.weight": ("in_proj.weight", (3 * width, width)),
        "query_proj.bias": ("q_bias", (width,)),
        "value_proj.bias": ("v_bias", (width,)),
        "pos_key_proj.weight": ("pos_proj.weight", (width, width)),
        "pos_query_proj.weight": ("pos_q_proj.weight", (width, width)),
        "pos_query_proj.bias": ("pos_q_proj.bias", (width,)),
    }
    released = {}
    for name, shape in shapes.items():
        prefix, separator, part = name.partition(".attention.self.")
        if not separator:
            released[name] = shape
        elif part in renamed:
            new, shape = renamed[part]
            released[prefix + separator + new] = shape
    return released
