"""A step of replaced-token detection in PyTorch, written from the formulas.

The encoder's layers are those of `transformers`; the mask decoder, the heads, the sharing, the
losses and the order of the updates are written out here. No dropout, sampled tokens given.
"""

import pytest

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")


def encoder(config, tensors):
    """DebertaV2Model in float64, from tensors with released names."""
    theirs = transformers.DebertaV2Model(
        transformers.DebertaV2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            max_relative_positions=config.max_relative_positions,
            position_buckets=config.position_buckets,
            type_vocab_size=0,
            layer_norm_eps=config.layer_norm_eps,
            relative_attention=True,
            position_biased_input=False,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type="p2c|c2p",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ).double()
    own = {k.removeprefix("deberta."): v for k, v in tensors.items() if k.startswith("deberta.")}
    own = {k: torch.tensor(v, dtype=torch.float64) for k, v in own.items()}
    own.pop("embeddings.position_embeddings.weight", None)
    theirs.load_state_dict(own)
    return theirs


class Head(torch.nn.Module):
    """The tensors of a released head by name; dots become underscores inside."""

    def __init__(self, tensors, prefixes):
        super().__init__()
        for name, value in tensors.items():
            if name.startswith(prefixes):
                parameter = torch.nn.Parameter(torch.tensor(value, dtype=torch.float64))
                self.register_parameter(name.replace(".", "__"), parameter)

    def __getitem__(self, name):
        return getattr(self, name.replace(".", "__"))

    def norm(self, x, name, eps):
        weights = self[f"{name}.weight"], self[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, x.shape[-1:], *weights, eps)

    def dense(self, x, name):
        return torch.nn.functional.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])


class Model(torch.nn.Module):
    """An encoder and its head, as tensors with released names."""

    def __init__(self, config, tensors, prefixes):
        super().__init__()
        self.config, self.encoder = config, encoder(config, tensors)
        self.head = Head(tensors, prefixes)

    def named(self):
        """Every parameter by its released name."""
        names = {f"deberta.{k}": p for k, p in self.encoder.named_parameters()}
        return names | {k.replace("__", "."): p for k, p in self.head.named_parameters()}

    def hidden(self, table, ids, segments):
        """(hidden states of all layers, the mask of pairs of tokens of one document)."""
        same = segments[:, :, None] == segments[:, None, :]
        mask = (same & (segments > 0)[:, None, :]).long()
        vectors = self.encoder.embeddings.LayerNorm(table[ids]) * (segments > 0)[..., None]
        return self.encoder.encoder(vectors, mask, output_hidden_states=True).hidden_states, mask


POSITIONS = "deberta.embeddings.position_embeddings.weight"


class Generator(Model):
    def __init__(self, config, tensors):
        super().__init__(config, tensors, ("lm_predictions.", POSITIONS))

    def loss(self, batch):
        table = self.encoder.embeddings.word_embeddings.weight
        states, mask = self.hidden(table, batch["input_ids"], batch["segment_ids"])
        layers, memory = self.encoder.encoder, states[-2]
        query = memory + self.head[POSITIONS][batch["position_ids"]]
        for _ in range(2):
            query, _ = layers.layer[-1](
                memory,
                layers.get_attention_mask(mask),
                query_states=query,
                relative_pos=layers.get_rel_pos(memory),
                rel_embeddings=layers.get_rel_embedding(),
            )
        rows = torch.arange(len(query))[:, None]
        chosen = query[rows, batch["masked_positions"]]
        chosen = torch.nn.functional.gelu(self.head.dense(chosen, "lm_predictions.lm_head.dense"))
        eps = self.config.layer_norm_eps
        chosen = self.head.norm(chosen, "lm_predictions.lm_head.LayerNorm", eps)
        logits = chosen @ table.T + self.head["lm_predictions.lm_head.bias"]
        losses = torch.nn.functional.cross_entropy(
            logits.swapaxes(1, 2), batch["masked_labels"], reduction="none"
        )
        weights = batch["masked_weights"]
        return (losses * weights).sum() / weights.sum()


class Discriminator(Model):
    def __init__(self, config, tensors):
        super().__init__(config, tensors, ("mask_predictions.",))

    def loss(self, table, ids, replaced, batch):
        states, _ = self.hidden(table, ids, batch["segment_ids"])
        hidden, positions = states[-1], batch["position_ids"]
        first = torch.arange(hidden.shape[1]) - positions  # of each token's own document
        hidden = hidden + hidden[torch.arange(len(hidden))[:, None], first]
        hidden = self.head.norm(hidden, "mask_predictions.LayerNorm", self.config.layer_norm_eps)
        hidden = torch.nn.functional.gelu(self.head.dense(hidden, "mask_predictions.dense"))
        logits = self.head.dense(hidden, "mask_predictions.classifier")[..., 0]
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, replaced.double(), reduction="none"
        )
        real = batch["segment_ids"] > 0
        return losses[real].mean()


def optimizer(named, config, rate):
    """AdamW; no decay on biases and LayerNorm weights."""
    kept = {k: p for k, p in named.items() if k.endswith(("bias", "LayerNorm.weight"))}
    rest = [p for k, p in named.items() if k not in kept]
    groups = [
        {"params": rest, "weight_decay": config.weight_decay},
        {"params": list(kept.values()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(config.b1, config.b2), eps=config.eps)


def update(loss, optimizer, named, clip):
    """One update by one loss: its gradient, clipped by its own norm."""
    optimizer.zero_grad()
    gradients = torch.autograd.grad(loss, list(named.values()))
    for parameter, gradient in zip(named.values(), gradients, strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(list(named.values()), clip)
    optimizer.step()
