"""Disentangled self-attention: projections of content and of relative positions."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from deberta_jax.kernels import default_implementation, disentangled_attention
from deberta_jax.kernels.relative import Relative
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.dropout import Dropout
from deberta_jax.model.layers import bias, weight
from deberta_jax.parallel.layout import splitting_axes

# Relative rows are left out of a layer's projections by so many.
ROWS = 64


class DisentangledSelfAttention(nn.Module):
    """Content and relative projections around `kernels.disentangled_attention` (paper, 3.1).

    One kernel [E, 3, H, D] projects queries, keys and values in one matmul. Relative rows go
    through its own query and key parts (`share_att_key`: v2, v3) or through projections of their
    own (v1: the key's without bias).
    """

    config: ModelConfig
    compute: ComputeConfig = ComputeConfig()
    deterministic: bool = True

    def setup(self):
        c = self.config
        heads = (c.num_attention_heads, c.head_size)
        self.qkv_kernel = weight(
            self, "qkv_kernel", (c.hidden_size, 3, *heads), ("embed", None, "heads", "head")
        )
        if c.model_type == "deberta":
            q_bias = bias(self, "q_bias", heads, ("heads", "head"))
            v_bias = bias(self, "v_bias", heads, ("heads", "head"))
            self.qkv_bias = jnp.stack([q_bias, jnp.zeros_like(q_bias), v_bias])
        else:
            self.qkv_bias = bias(self, "qkv_bias", (3, *heads), (None, "heads", "head"))
        self._setup_relative(heads)
        self.relative_dropout = Dropout(c.hidden_dropout_prob, deterministic=self.deterministic)

    def _setup_relative(self, heads):
        """Own projections of relative rows; v1 has no bias on the relative key."""
        c = self.config
        if c.share_att_key:
            return
        shape, axes = (c.hidden_size, *heads), ("embed", "heads", "head")
        if "c2p" in c.pos_att_type:
            self.pos_key_kernel = weight(self, "pos_key_kernel", shape, axes)
            if c.model_type != "deberta":
                self.pos_key_bias = bias(self, "pos_key_bias", heads, axes[1:])
        if "p2c" in c.pos_att_type:
            self.pos_query_kernel = weight(self, "pos_query_kernel", shape, axes)
            self.pos_query_bias = bias(self, "pos_query_bias", heads, axes[1:])

    def __call__(
        self,
        hidden_BLE: Float[Array, "B L E"],
        segments_BL: Int[Array, "B L"],
        relative_RE: Float[Array, "R E"] | None,
        distance_rows: np.ndarray | None,
        queries_BPE: Float[Array, "B P E"] | None = None,
        query_positions_BP: Int[Array, "B P"] | None = None,
    ) -> Float[Array, "B Q H D"]:
        """Attends from every token, or from `queries_BPE` alone, to the tokens of `hidden_BLE`.

        Args:
            hidden_BLE: what keys and values are made of.
            segments_BL: document of each token; 0 is padding.
            relative_RE: relative embeddings; None where no relative term is on.
            distance_rows: the row of `relative_RE` of each distance, [2L - 1].
            queries_BPE: other queries than `hidden_BLE` (the Enhanced Mask Decoder's).
            query_positions_BP: where in the sequence those queries stand; None for one query at
                every place, in order.

        Returns:
            [B, L, H, D], or [B, P, H, D] for `queries_BPE`.
        """
        c = self.config
        if queries_BPE is None:
            projected = self._projected(hidden_BLE)
        else:
            query = jnp.einsum("BPE,EHD->BPHD", queries_BPE, self.qkv_kernel[:, 0])
            projected = jnp.einsum("BLE,ECHD->CBLHD", hidden_BLE, self.qkv_kernel[:, 1:])
        query_segments = segments_BL
        if query_positions_BP is not None:
            stands_BPL = query_positions_BP[..., None] == jnp.arange(segments_BL.shape[1])
            query_segments = jnp.sum(jnp.where(stands_BPL, segments_BL[:, None], 0), axis=-1)
        # A split, whose transpose is the concatenation that the fused kernel's gradients undo.
        *first, key, value = (
            jnp.squeeze(part, 0) for part in jnp.split(projected, len(projected), axis=0)
        )
        query = first[0] if first else query
        # Parameters depend on no scores: what their making computes with is nothing to warn of.
        implementation = self.compute.attention
        if self.is_initializing() and implementation == "auto":
            implementation = "xla"
        rate = 0.0 if self.deterministic else c.attention_probs_dropout_prob
        return disentangled_attention(
            query,
            key,
            value,
            self._relative(relative_RE, distance_rows),
            query_segments,
            segments_BL,
            query_positions_BP,
            dropout_rate=rate,
            dropout_rng=self.make_rng("dropout") if rate else None,
            causal=c.causal,
            biases_3HD=self.qkv_bias,
            implementation=implementation,
            partition=PartitionSpec(
                *splitting_axes(("batch", "length", "heads", "head"), query.shape)
            ),
        )

    def _projected(self, hidden_BLE):
        """Queries, keys and values without their biases, [3, B, L, H, D], by one matmul."""
        if default_implementation().qkv_layout == "BL3HD":
            projected_BLCHD = jnp.einsum("BLE,ECHD->BLCHD", hidden_BLE, self.qkv_kernel)
            return jnp.moveaxis(projected_BLCHD, 2, 0)
        return jnp.einsum("BLE,ECHD->CBLHD", hidden_BLE, self.qkv_kernel)

    def _project(self, x, part):
        return jnp.einsum("...E,EHD->...HD", x, self.qkv_kernel[:, part]) + self.qkv_bias[part]

    def _relative(self, relative_RE, distance_rows):
        """Relative keys and queries of this layer, once for the whole batch."""
        c = self.config
        if not c.pos_att_type:
            return None
        # Short sequences read the middle of the table: only that is projected.
        first = distance_rows.min() // ROWS * ROWS
        last = -(-(distance_rows.max() + 1) // ROWS) * ROWS
        relative_RE = self.relative_dropout(relative_RE[first:last])
        distance_rows = distance_rows - first
        key = query = None
        if "c2p" in c.pos_att_type:
            if c.share_att_key:
                key = self._project(relative_RE, 1)
            else:
                key = jnp.einsum("RE,EHD->RHD", relative_RE, self.pos_key_kernel)
                if c.model_type != "deberta":
                    key += self.pos_key_bias
        if "p2c" in c.pos_att_type:
            if c.share_att_key:
                query = self._project(relative_RE, 0)
            else:
                query = jnp.einsum("RE,EHD->RHD", relative_RE, self.pos_query_kernel)
                query += self.pos_query_bias
        return Relative(key, query, distance_rows)

    def scores(
        self,
        hidden_BLE: Float[Array, "B L E"],
        relative_RE: Float[Array, "R E"] | None,
        distance_rows: np.ndarray,
        heads: Int[Array, " N"],
        queries_BLE: Float[Array, "B L E"] | None = None,
    ) -> dict[str, Float[Array, "B N L L"]]:
        """The terms of some heads' scores, scaled: {"c2c", "c2p", "p2c"}, each [B, heads, L, L].

        For looking at (`model.inspection`): the kernels never hold them. The arguments are those of
        a call; there is a query for every token, in order.
        """
        query = self._project(hidden_BLE if queries_BLE is None else queries_BLE, 0)[:, :, heads]
        key = self._project(hidden_BLE, 1)[:, :, heads]
        terms = {"c2c": jnp.einsum("BQHD,BKHD->BHQK", query, key)}
        if relative := self._relative(relative_RE, distance_rows):
            length = hidden_BLE.shape[1]
            distance_QK = np.arange(length)[:, None] - np.arange(length)
            rows_QK = relative.distance_rows[distance_QK + length - 1][None, None]
            if relative.key_RHD is not None:
                products = jnp.einsum("BQHD,RHD->BHQR", query, relative.key_RHD[:, heads])
                terms["c2p"] = jnp.take_along_axis(products, rows_QK, axis=3)
            if relative.query_RHD is not None:
                products = jnp.einsum("RHD,BKHD->BHRK", relative.query_RHD[:, heads], key)
                terms["p2c"] = jnp.take_along_axis(products, rows_QK, axis=2)
        scale = (self.config.head_size * len(terms)) ** 0.5
        return {name: term / scale for name, term in terms.items()}
