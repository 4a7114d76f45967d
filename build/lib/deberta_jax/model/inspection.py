"""Looking inside: what each layer reads, and its attention scores by part.

The encoder runs layer by layer instead of under its scan, with the model's own modules and
parameters. Nothing is kept of the layers and heads that nobody asked for.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from deberta_jax.model.attention import DisentangledSelfAttention
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.encoder import Convolution, Embeddings, Encoder, Layer
from deberta_jax.model.heads import EMD_PASSES, with_defaults
from deberta_jax.model.positions import distance_rows


class LayerInput(NamedTuple):
    """What one layer works on.

    Attributes:
        params: the layer's own parameters.
        hidden_BLE: the hidden states that it makes keys and values of.
        segments_BL: document of each token; 0 is padding.
        relative_RE: relative embeddings; None where the model has no relative term.
        queries_BLE: other queries than `hidden_BLE`, in the Enhanced Mask Decoder.
    """

    params: Any
    hidden_BLE: Float[Array, "B L E"]
    segments_BL: Int[Array, "B L"]
    relative_RE: Float[Array, "R E"] | None
    queries_BLE: Float[Array, "B L E"] | None = None


def layer_inputs(
    config: ModelConfig,
    params,
    input_ids_BL: Int[Array, "B L"],
    attention_mask_BL: Int[Array, "B L"] | None = None,
    position_ids_BL: Int[Array, "B L"] | None = None,
) -> Iterator[LayerInput]:
    """The input of every layer, first to last; a layer runs only if the next one is asked for.

    Args:
        config: of the model, of any task.
        params: the model's.
        input_ids_BL: as for the model, and so the next two.
        attention_mask_BL: document of each token; 0 is padding.
        position_ids_BL: place of each token in its document.
    """
    segments_BL, positions_BL = with_defaults(input_ids_BL, attention_mask_BL, position_ids_BL)
    encoder = params["encoder"]
    embeddings_BLE, relative_RE = _embed(config, params, input_ids_BL, positions_BL, segments_BL)
    hidden_BLE = embeddings_BLE
    for layer in range(config.num_hidden_layers):
        given = LayerInput(
            _layer_params(config, encoder, layer), hidden_BLE, segments_BL, relative_RE
        )
        yield given
        hidden_BLE = _run_layer(config, given)
        if layer == 0 and config.conv_kernel_size:
            hidden_BLE = _convolve(config, encoder, embeddings_BLE, hidden_BLE, segments_BL)


def decoder_inputs(
    config: ModelConfig, params, last: LayerInput, position_ids_BL: Int[Array, "B L"] | None = None
) -> Iterator[LayerInput]:
    """The input of each pass of the Enhanced Mask Decoder (paper, 3.2), over every position.

    Args:
        config: of a model with a mask decoder.
        params: its parameters, the position table among them.
        last: the input of the last layer.
        position_ids_BL: place of each token in its document.
    """
    _, positions_BL = with_defaults(last.segments_BL, None, position_ids_BL)
    table = params["embeddings"]["position_embeddings"]["embedding"]
    queries_BLE = last.hidden_BLE + table[positions_BL]
    for _ in range(EMD_PASSES):
        given = last._replace(queries_BLE=queries_BLE)
        yield given
        queries_BLE = _run_layer(config, given)


@functools.partial(jax.jit, static_argnums=(0, 2))
def attention_scores(
    config: ModelConfig, layer_input: LayerInput, heads: Sequence[int]
) -> dict[str, jax.Array]:
    """The scores of some heads by part, {"c2c", "c2p", "p2c"}, each [B, heads, L, L] (query, key).

    Each is scaled as in the model: the softmax of their sum is the attention. A term that the model
    does not have is not there.

    Args:
        config: of the model.
        layer_input: what the layer works on.
        heads: a tuple of those wanted, from 0.
    """
    length = layer_input.hidden_BLE.shape[1]
    terms: Any = DisentangledSelfAttention(config).apply(
        {"params": layer_input.params["attention"]},
        layer_input.hidden_BLE,
        layer_input.relative_RE,
        distance_rows(config, length, length),
        jnp.asarray(heads),
        layer_input.queries_BLE,
        method="scores",
    )
    return terms


@functools.partial(jax.jit, static_argnums=0)
def attention_probabilities(
    config: ModelConfig, scores, segments_BL: Int[Array, "B L"]
) -> jax.Array:
    """[B, heads, L, L]: what each query (third axis) attends to; 0 where it sees nothing.

    Args:
        config: of the model.
        scores: by part, as `attention_scores` gives them.
        segments_BL: document of each token; 0 is padding.
    """
    seen_BQK = (segments_BL[:, :, None] == segments_BL[:, None]) & (segments_BL[:, None] > 0)
    if config.causal:
        seen_BQK &= np.tri(segments_BL.shape[1], dtype=bool)
    return jax.nn.softmax(sum(scores.values()), axis=-1, where=seen_BQK[:, None])


def _layer_params(config: ModelConfig, encoder, layer: int):
    """The parameters of a layer, wherever the encoder keeps them."""
    if layer == config.num_hidden_layers - 1:
        return encoder["last_layer"]
    if config.conv_kernel_size and layer == 0:
        return encoder["first_layer"]
    place = layer - bool(config.conv_kernel_size)
    return jax.tree.map(lambda stacked: stacked[place], encoder["layers"]["layer"])


@functools.partial(jax.jit, static_argnums=0)
def _embed(config: ModelConfig, params, input_ids_BL, positions_BL, segments_BL):
    """Embeddings of the tokens [B, L, E], and the relative ones [R, E]."""
    embeddings_BLE = Embeddings(config).apply(
        {"params": params["embeddings"]}, input_ids_BL, positions_BL, segments_BL
    )
    encoder = {"params": params["encoder"]}
    return embeddings_BLE, Encoder(config).apply(encoder, method="relative")


@functools.partial(jax.jit, static_argnums=0)
def _convolve(config: ModelConfig, encoder, embeddings_BLE, hidden_BLE, segments_BL):
    convolution = {"params": encoder["convolution"]}
    return Convolution(config).apply(convolution, embeddings_BLE, hidden_BLE, segments_BL)


@functools.partial(jax.jit, static_argnums=0)
def _run_layer(config: ModelConfig, layer_input: LayerInput) -> jax.Array:
    positions_BL = None
    if layer_input.queries_BLE is not None:
        positions_BL = jnp.broadcast_to(
            jnp.arange(layer_input.segments_BL.shape[1]), layer_input.segments_BL.shape
        )
    output: Any = Layer(config).apply(
        {"params": layer_input.params},
        layer_input.hidden_BLE,
        layer_input.segments_BL,
        layer_input.relative_RE,
        layer_input.queries_BLE,
        positions_BL,
    )
    return output
