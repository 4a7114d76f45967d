"""The encoder: embeddings, layers under one scan, and the last layer by itself.

The last layer stands apart because pre-training never runs it over the whole sequence: the
Enhanced Mask Decoder runs it over the masked tokens only.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deberta_jax.model.attention import DisentangledSelfAttention
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.dropout import Dropout
from deberta_jax.model.layers import (
    ACTIVATIONS,
    VOCABULARY_TABLE,
    Dense,
    Embedding,
    LayerNorm,
    bias,
    weight,
)
from deberta_jax.model.positions import distance_rows

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attention", "layer_norm"),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def constrain(x_BLE):
    return nn.with_logical_constraint(x_BLE, ("batch", "length", "activation"))


class Embeddings(nn.Module):
    """Lookup -> (+ absolute positions) -> LayerNorm -> zero the padding -> dropout."""

    config: ModelConfig
    compute: ComputeConfig = ComputeConfig()
    deterministic: bool = True

    def setup(self):
        c, compute = self.config, self.compute
        self.word_embeddings = Embedding(c, compute, c.vocab_size, VOCABULARY_TABLE)
        if c.position_biased_input or c.decodes_with_emd:
            self.position_embeddings = Embedding(
                c, compute, c.max_position_embeddings, (None, "embed")
            )
        self.norm = LayerNorm(c, compute)
        self.dropout = Dropout(c.hidden_dropout_prob, deterministic=self.deterministic)

    def __call__(
        self,
        input_ids_BL: Int[Array, "B L"],
        position_ids_BL: Int[Array, "B L"],
        segments_BL: Int[Array, "B L"],
    ):
        hidden_BLE = self.word_embeddings(input_ids_BL)
        if self.config.position_biased_input:
            hidden_BLE += self.position_embeddings(position_ids_BL)
        hidden_BLE = self.norm(hidden_BLE) * (segments_BL > 0)[..., None]
        return constrain(self.dropout(hidden_BLE.astype(self.compute.dtype)))


class Layer(nn.Module):
    """One post-norm Transformer layer. With `queries_BPE`, those are the residual stream."""

    config: ModelConfig
    compute: ComputeConfig = ComputeConfig()
    deterministic: bool = True

    @nn.compact
    def __call__(
        self,
        hidden_BLE,
        segments_BL,
        relative_RE,
        queries_BPE=None,
        query_positions_BP=None,
    ):
        c, compute = self.config, self.compute
        rows = distance_rows(c, segments_BL.shape[1], segments_BL.shape[1])
        context = DisentangledSelfAttention(c, compute, self.deterministic, name="attention")(
            hidden_BLE, segments_BL, relative_RE, rows, queries_BPE, query_positions_BP
        )
        context = context.reshape(*context.shape[:2], c.hidden_size)
        residual = hidden_BLE if queries_BPE is None else queries_BPE
        dropout = Dropout(c.hidden_dropout_prob, deterministic=self.deterministic)

        output = Dense(c, compute, c.hidden_size, ("heads", "embed"), name="attention_output")(
            context
        )
        output = dropout(output)
        residual = constrain(LayerNorm(c, compute, name="attention_norm")(residual + output))

        inner = Dense(c, compute, c.intermediate_size, ("embed", "mlp"), name="intermediate")(
            residual
        )
        inner = ACTIVATIONS[c.hidden_act](inner)
        output = Dense(c, compute, c.hidden_size, ("mlp", "embed"), name="output")(inner)
        output = dropout(output)
        return constrain(LayerNorm(c, compute, name="output_norm")(residual + output))


class Convolution(nn.Module):
    """v2's convolution beside the first layer: LN(layer output + act(dropout(conv(embeddings)))).

    A tap that falls on another document, or on padding, reads zero: packed documents stay apart.
    In a causal model so does a tap that falls on a later token.
    """

    config: ModelConfig
    compute: ComputeConfig = ComputeConfig()
    deterministic: bool = True

    @nn.compact
    def __call__(
        self,
        embeddings_BLE: Float[Array, "B L E"],
        layer_output_BLE: Float[Array, "B L E"],
        segments_BL: Int[Array, "B L"],
    ):
        c = self.config
        taps = c.conv_kernel_size
        shape = (taps, c.hidden_size, c.hidden_size)
        kernel_TEF = weight(self, "kernel", shape, (None, "embed", None))
        output = bias(self, "bias", (c.hidden_size,), ("norm",))
        for tap in range(taps // 2 + 1 if c.causal else taps):
            offset = tap - taps // 2
            same = (_shifted(segments_BL, offset) == segments_BL)[..., None]
            output += jnp.where(same, _shifted(embeddings_BLE, offset), 0) @ kernel_TEF[tap]
        valid = (segments_BL > 0)[..., None]
        dropout = Dropout(c.hidden_dropout_prob, deterministic=self.deterministic)
        output = ACTIVATIONS[c.conv_act](dropout(jnp.where(valid, output, 0)))
        output = LayerNorm(c, self.compute, name="norm")(layer_output_BLE + output)
        return constrain(output * valid)


def _shifted(x, offset):
    """out[:, i] = x[:, i + offset], zero beyond the ends."""
    length = x.shape[1]
    padding = [(0, 0), (max(0, -offset), max(0, offset))] + [(0, 0)] * (x.ndim - 2)
    start = max(0, offset)
    return jnp.pad(x, padding)[:, start : start + length]


class Encoder(nn.Module):
    """Layers 1 to n - 1 (`until_last`) and the last one (`last_layer`).

    Parameters: `layers`, stacked for the scan; `first_layer` and `convolution` where the model has
    a convolution; `last_layer`; `relative_embeddings` (and `relative_norm`).
    """

    config: ModelConfig
    compute: ComputeConfig = ComputeConfig()
    deterministic: bool = True

    def setup(self):
        c, compute, deterministic = self.config, self.compute, self.deterministic
        if c.pos_att_type:
            self.relative_embeddings = Embedding(c, compute, 2 * c.relative_span, (None, "embed"))
            if c.norm_rel_ebd == "layer_norm":
                self.relative_norm = LayerNorm(c, compute)
        if c.conv_kernel_size:
            self.first_layer = Layer(c, compute, deterministic)
            self.convolution = Convolution(c, compute, deterministic)
        layer = Layer
        if compute.remat != "none":
            layer = nn.remat(Layer, policy=_REMAT_POLICIES[compute.remat], prevent_cse=False)
        if scanned := c.num_hidden_layers - 1 - bool(c.conv_kernel_size):
            self.layers = nn.scan(
                _ScannedLayer,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=scanned,
                unroll=min(compute.unroll, scanned),
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(c, compute, deterministic, layer)
        self.last_layer = layer(c, compute, deterministic)

    def relative(self):
        """Relative embeddings [R, E], normalised where the model does; None without a term."""
        c = self.config
        if not c.pos_att_type:
            return None
        relative_RE = self.relative_embeddings.embedding
        return self.relative_norm(relative_RE) if c.norm_rel_ebd == "layer_norm" else relative_RE

    def until_last(self, embeddings_BLE, segments_BL):
        """The hidden states after layer n - 1: what the last layer makes keys and values of."""
        c = self.config
        relative_RE, hidden_BLE = self.relative(), embeddings_BLE
        if c.conv_kernel_size:
            hidden_BLE = self.first_layer(hidden_BLE, segments_BL, relative_RE)
            hidden_BLE = self.convolution(embeddings_BLE, hidden_BLE, segments_BL)
        if c.num_hidden_layers - 1 - bool(c.conv_kernel_size):
            hidden_BLE, _ = self.layers(hidden_BLE, segments_BL, relative_RE)
        return hidden_BLE

    def decode(self, hidden_BLE, segments_BL, queries_BPE, query_positions_BP=None):
        """The last layer for `queries_BPE` only; keys and values are `hidden_BLE`'s."""
        return self.last_layer(
            hidden_BLE, segments_BL, self.relative(), queries_BPE, query_positions_BP
        )

    def __call__(self, embeddings_BLE: Float[Array, "B L E"], segments_BL: Int[Array, "B L"]):
        """All layers over all tokens: the last hidden state, [B, L, E]."""
        hidden_BLE = self.until_last(embeddings_BLE, segments_BL)
        return self.last_layer(hidden_BLE, segments_BL, self.relative())


class _ScannedLayer(nn.Module):
    """A layer in the form of a scan's body: carry in, (carry, nothing) out."""

    config: ModelConfig
    compute: ComputeConfig
    deterministic: bool
    layer: type[nn.Module]

    @nn.compact
    def __call__(
        self,
        hidden_BLE: Float[Array, "B L E"],
        segments_BL: Int[Array, "B L"],
        relative_RE: Float[Array, "R E"] | None,
    ):
        layer = self.layer(self.config, self.compute, self.deterministic, name="layer")
        return layer(hidden_BLE, segments_BL, relative_RE), None
