"""Model FLOPs: what the mathematics needs, whatever an implementation spends."""

from deberta_jax.model.config import ModelConfig
from deberta_jax.model.heads import EMD_PASSES


def layer_flops(config: ModelConfig, queries: int, keys: int, kv_projections: bool = True) -> float:
    """Forward FLOPs of one layer for `queries` tokens that attend to `keys` tokens.

    Counted: the projections, the feed-forward layer, Q.K, each disentangled term as one more Q.K,
    and P.V, for the pairs that a causal model sees. Not counted: relative projections (once a
    batch), softmax, LayerNorm, activations.
    """
    width, inner = config.hidden_size, config.intermediate_size
    projections = 2 * width * width * (2 * queries + 2 * keys * kv_projections)
    feed_forward = 4 * width * inner * queries
    seen = (keys + 1) / 2 if config.causal else keys
    attention = 2 * width * queries * seen * (2 + len(config.pos_att_type))
    return projections + feed_forward + attention


def masked_lm_flops(config: ModelConfig, length: int, predictions: int) -> float:
    """FLOPs of one sequence of a masked-LM training step: three times the forward pass.

    The last layer and the head run for the predicted tokens only, the last layer twice with EMD.
    Rematerialisation is not counted: it is work that the mathematics does not need.
    """
    forward = (config.num_hidden_layers - 1) * layer_flops(config, length, length)
    if config.conv_kernel_size:
        forward += 2 * config.conv_kernel_size * config.hidden_size**2 * length
    for decoding in range(EMD_PASSES if config.decodes_with_emd else 1):
        # Keys and values are the same in every pass and projected once.
        forward += layer_flops(config, predictions, length, kv_projections=decoding == 0)
    forward += 2 * config.hidden_size * (config.hidden_size + config.vocab_size) * predictions
    return 3 * forward


def encoder_flops(config: ModelConfig, length: int) -> float:
    """FLOPs of one sequence of a training step of the encoder under a small head: three times the
    forward pass. The head, once a sequence or two numbers a token, is left out."""
    forward = config.num_hidden_layers * layer_flops(config, length, length)
    if config.conv_kernel_size:
        forward += 2 * config.conv_kernel_size * config.hidden_size**2 * length
    return 3 * forward


def replaced_token_flops(config: ModelConfig, length: int) -> float:
    """FLOPs of one sequence of the discriminator's training step, its head included."""
    return encoder_flops(config, length) + 3 * 2 * config.hidden_size**2 * length
