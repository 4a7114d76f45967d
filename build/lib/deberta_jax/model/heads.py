"""Whole models: the bare one, and the one that predicts masked tokens."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.encoder import Embeddings, Encoder
from deberta_jax.model.layers import ACTIVATIONS, Dense, LayerNorm, bias

# The released decoder applies the last layer twice.
EMD_PASSES = 2


class MaskedLMHead(nn.Module):
    """Dense -> activation -> LayerNorm; the tied word embedding and a bias make the logits."""

    config: ModelConfig
    compute: ComputeConfig = ComputeConfig()

    def setup(self):
        c, compute = self.config, self.compute
        self.dense = Dense(c, compute, c.hidden_size, ("embed", None))
        self.norm = LayerNorm(c, compute)
        self.output_bias = bias(self, "bias", (c.vocab_size,), ("vocab",))

    def transform(self, hidden_BPE):
        """What the word embeddings are multiplied with, [B, P, E]."""
        return self.norm(ACTIVATIONS[self.config.hidden_act](self.dense(hidden_BPE)))

    def __call__(self, hidden_BPE: Float[Array, "B P E"], word_embeddings):
        logits = word_embeddings.attend(self.transform(hidden_BPE)) + self.output_bias
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))


class Deberta(nn.Module):
    """The bare model. `apply` gives the last hidden state of every token."""

    config: ModelConfig
    compute: ComputeConfig = ComputeConfig()
    deterministic: bool = True

    def setup(self):
        self.embeddings = Embeddings(self.config, self.compute, self.deterministic)
        self.encoder = Encoder(self.config, self.compute, self.deterministic)

    def __call__(
        self,
        input_ids_BL: Int[Array, "B L"],
        attention_mask_BL: Int[Array, "B L"] | None = None,
        position_ids_BL: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B L E"]:
        """The last hidden state, [B, L, E] in the compute type.

        Args:
            input_ids_BL: int32 tokens.
            attention_mask_BL: int32, 0 for padding; other values name the document that a token
                belongs to, and none sees another's. Ones where it is left out.
            position_ids_BL: int32 place of each token in its document; read only by models with
                absolute positions. 0 to L - 1 where it is left out.
        """
        return self.encode(input_ids_BL, attention_mask_BL, position_ids_BL)

    def encode(self, input_ids_BL, attention_mask_BL=None, position_ids_BL=None):
        """As `__call__` of the bare model, from any model that is built on it."""
        segments_BL, positions_BL = with_defaults(input_ids_BL, attention_mask_BL, position_ids_BL)
        embeddings_BLE = self.embeddings(input_ids_BL, positions_BL, segments_BL)
        return self.encoder(embeddings_BLE, segments_BL)


def with_defaults(input_ids_BL, attention_mask_BL, position_ids_BL):
    """(segments, positions): one document from end to end, unless told otherwise."""
    if attention_mask_BL is None:
        attention_mask_BL = jnp.ones_like(input_ids_BL)
    if position_ids_BL is None:
        position_ids_BL = jnp.broadcast_to(jnp.arange(input_ids_BL.shape[1]), input_ids_BL.shape)
    return jnp.asarray(attention_mask_BL), jnp.asarray(position_ids_BL)


class DebertaForMaskedLM(Deberta):
    """DeBERTa with the Enhanced Mask Decoder (paper, 3.2), computed at the masked tokens only.

    A causal model (`config.causal`) predicts, at each place, the token after it.

    Keys and values of the decoder are the hidden states after layer n - 1, which no query changes;
    so each masked token's result is exactly what decoding every position would give, and the
    ordinary last layer need not run. Without EMD, the ordinary last layer likewise runs for the
    masked tokens only.
    """

    def setup(self):
        super().setup()
        self.lm_head = MaskedLMHead(self.config, self.compute)

    def __call__(
        self,
        input_ids_BL: Int[Array, "B L"],
        attention_mask_BL: Int[Array, "B L"] | None = None,
        position_ids_BL: Int[Array, "B L"] | None = None,
        masked_positions_BP: Int[Array, "B P"] | None = None,
    ) -> Float[Array, "B P V"]:
        """Logits [B, P, V] of the tokens at `masked_positions_BP`, in the compute type.

        Args:
            input_ids_BL: int32 tokens, the masked ones replaced.
            attention_mask_BL: as for the bare model.
            position_ids_BL: as for the bare model; EMD reads it.
            masked_positions_BP: int32 places in the sequence to decode. All of them, in order,
                where it is left out.
        """
        decoded_BPE = self._decode(
            input_ids_BL, attention_mask_BL, position_ids_BL, masked_positions_BP
        )
        return self.lm_head(decoded_BPE, self.embeddings.word_embeddings)

    def before_projection(
        self,
        input_ids_BL: Int[Array, "B L"],
        attention_mask_BL: Int[Array, "B L"] | None = None,
        position_ids_BL: Int[Array, "B L"] | None = None,
        masked_positions_BP: Int[Array, "B P"] | None = None,
    ) -> tuple[Float[Array, "B P E"], Float[Array, "V E"], Float[Array, " V"]]:
        """(hidden [B, P, E], embedding [V, E], bias [V]): the logits are hidden . embedding + bias.

        For losses that make the logits a block at a time; the arguments are those of `__call__`.
        """
        decoded_BPE = self._decode(
            input_ids_BL, attention_mask_BL, position_ids_BL, masked_positions_BP
        )
        hidden_BPE = self.lm_head.transform(decoded_BPE)
        return hidden_BPE, self.embeddings.word_embeddings.embedding, self.lm_head.output_bias

    def _decode(self, input_ids_BL, attention_mask_BL, position_ids_BL, masked_positions_BP):
        """The last hidden state of the tokens at `masked_positions_BP`, [B, P, E]."""
        segments_BL, positions_BL = with_defaults(input_ids_BL, attention_mask_BL, position_ids_BL)
        embeddings_BLE = self.embeddings(input_ids_BL, positions_BL, segments_BL)
        hidden_BLE = self.encoder.until_last(embeddings_BLE, segments_BL)
        queries_BPE, places_BP = hidden_BLE, positions_BL
        if masked_positions_BP is not None:
            queries_BPE = jnp.take_along_axis(hidden_BLE, masked_positions_BP[..., None], axis=1)
            places_BP = jnp.take_along_axis(positions_BL, masked_positions_BP, axis=1)
        passes = 1
        if self.config.decodes_with_emd:
            queries_BPE += self.embeddings.position_embeddings(places_BP)
            passes = EMD_PASSES
        for _ in range(passes):
            queries_BPE = self.encoder.decode(
                hidden_BLE, segments_BL, queries_BPE, masked_positions_BP
            )
        return queries_BPE
