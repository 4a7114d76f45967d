"""The architecture: one frozen dataclass for v1, v2, v3 and everything between."""

import dataclasses
from typing import Any

from deberta_jax.errors import UserError

_CHOICES = {
    "model_type": ("deberta", "deberta-v2"),
    "norm_rel_ebd": ("none", "layer_norm"),
    "hidden_act": ("gelu", "gelu_new", "relu", "tanh"),
    "conv_act": ("gelu", "gelu_new", "relu", "tanh"),
    "pooler_hidden_act": ("gelu", "gelu_new", "relu", "tanh"),
}


def _varies(default):
    """A field that runs on the same parameters may vary: it decides no tensor's meaning."""
    return dataclasses.field(default=default, metadata={"varies": True})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Fields carry the names of the released `config.json` wherever it has one.

    Raises `UserError` for a value or a combination that no DeBERTa has.
    """

    # "deberta": v1 (no key bias, own position projections); "deberta-v2": v2, v3 and mDeBERTa.
    model_type: str = "deberta-v2"
    # Rows of the word embedding table; at least the tokenizer's size.
    vocab_size: int = 128_100
    # Width of the residual stream.
    hidden_size: int = 768
    # Transformer layers; the last one is also the Enhanced Mask Decoder's.
    num_hidden_layers: int = 12
    # Attention heads; hidden_size is a multiple of it.
    num_attention_heads: int = 12
    # Width of the feed-forward layer.
    intermediate_size: int = 3072
    # Activation of the feed-forward layer and of the prediction head.
    hidden_act: str = "gelu"
    # Dropout of embeddings, relative embeddings and every residual branch.
    hidden_dropout_prob: float = _varies(0.1)
    # Dropout of the attention probabilities.
    attention_probs_dropout_prob: float = _varies(0.1)
    # Rows of the absolute position table (EMD, or the input where position_biased_input).
    max_position_embeddings: int = 512
    # Add absolute positions to the input, as BERT does. It turns the mask decoder's off.
    position_biased_input: bool = False
    # Decode the masked tokens with the Enhanced Mask Decoder (absolute positions enter there).
    enhanced_mask_decoder: bool = True
    # The disentangled terms: any subset of ("c2p", "p2c"); () is plain attention.
    pos_att_type: tuple[str, ...] = ("c2p", "p2c")
    # Distances beyond it (in tokens) share one relative row.
    max_relative_positions: int = 512
    # Logarithmic buckets each side for relative positions (v2, v3: 256). 0: a row a distance (v1).
    position_buckets: int = 256
    # Relative rows go through the content's own query and key projections (v2, v3).
    share_att_key: bool = True
    # "layer_norm": normalise the relative embeddings once (v2, v3). "none": v1.
    norm_rel_ebd: str = "layer_norm"
    # No token sees a later one (auto-regressive models: objective "clm").
    causal: bool = _varies(False)
    # Kernel of the convolution beside the first layer (v2: 3). 0: no convolution.
    conv_kernel_size: int = 0
    # Activation of that convolution.
    conv_act: str = "gelu"
    # Activation of the pooler, which a sequence classifier reads.
    pooler_hidden_act: str = "gelu"
    # Standard deviation of the initial weights.
    initializer_range: float = _varies(0.02)
    # Epsilon of every LayerNorm.
    layer_norm_eps: float = 1e-7

    def __post_init__(self):
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                raise UserError(f"model.{field} is {value!r}; it must be one of {choices}")
        for field in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "intermediate_size", "max_position_embeddings", "max_relative_positions",
        ):  # fmt: skip
            if getattr(self, field) < 1:
                raise UserError(f"model.{field} is {getattr(self, field)}; it must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"model.hidden_size {self.hidden_size} is not a multiple of "
                f"model.num_attention_heads {self.num_attention_heads}"
            )
        unknown = [t for t in self.pos_att_type if t not in ("c2p", "p2c")]
        if unknown or len(set(self.pos_att_type)) != len(self.pos_att_type):
            raise UserError(
                f"model.pos_att_type is {self.pos_att_type}; it must be a subset of ('c2p', 'p2c')"
            )
        if self.model_type == "deberta" and self.share_att_key:
            raise UserError("model.share_att_key must be False where model.model_type is 'deberta'")
        if self.conv_kernel_size < 0 or (self.conv_kernel_size and self.conv_kernel_size % 2 == 0):
            raise UserError(
                f"model.conv_kernel_size is {self.conv_kernel_size}; it must be 0 or an odd number"
            )
        if self.conv_kernel_size and self.num_hidden_layers == 1:
            raise UserError(
                f"model.conv_kernel_size is {self.conv_kernel_size} and model.num_hidden_layers 1: "
                "the convolution lies between the first layer and the last, so it needs 2 layers"
            )
        if self.position_buckets < 0 or self.position_buckets == 1:
            raise UserError(
                f"model.position_buckets is {self.position_buckets}; it must be 0 or at least 2"
            )
        if self.position_buckets and self.position_buckets // 2 >= self.max_relative_positions:
            raise UserError(
                f"model.position_buckets {self.position_buckets} must be less than twice "
                f"model.max_relative_positions {self.max_relative_positions}; or 0 for no buckets"
            )

    def architecture(self) -> dict[str, Any]:
        """The fields that decide what a checkpoint's tensors mean, by name."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if "varies" not in f.metadata}

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def relative_span(self) -> int:
        """Relative rows each side of distance 0: buckets where there are any, else distances."""
        return self.position_buckets or self.max_relative_positions

    @property
    def decodes_with_emd(self) -> bool:
        return self.enhanced_mask_decoder and not self.position_biased_input
