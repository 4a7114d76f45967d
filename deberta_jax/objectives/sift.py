"""SiFT: virtual adversarial training on the normalised word embeddings (paper, section 4.3).

The perturbation goes where the released code puts it: between a LayerNorm without weights, put on
the embeddings, and the model's own LayerNorm. It begins as clipped noise, and each ascent step adds
its gradient, scaled so that a token's largest entry is the learning rate. The loss is the symmetric
KL divergence of the outputs for the perturbed and for the plain text (the squared difference, for
numbers); through the perturbed text it does not reach the embeddings themselves.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from deberta_jax.objectives.base import Params
from deberta_jax.objectives.config import FinetuneConfig

# `(perturbation, rng) -> divergence`, summed over the items.
Gain = Callable[[Float[Array, "B L E"], Key[Array, ""]], Float[Array, ""]]

# Of the LayerNorm without weights, and of the step's denominator, both as released.
_NORM_EPS, _STEP_EPS = 1e-7, 1e-6
# The model's own LayerNorm of embeddings.
_NORM = ("embeddings", "norm")


def first_perturbation(
    rng: Key[Array, ""], shape: tuple[int, int, int], config: FinetuneConfig
) -> Float[Array, "B L E"]:
    """Noise of `sift_perturbation`, clipped at twice as much."""
    scale = config.sift_perturbation
    return jnp.clip(scale * jax.random.normal(rng, shape), -2 * scale, 2 * scale)


def ascended(
    delta_BLE: Float[Array, "B L E"], gradient_BLE: Float[Array, "B L E"], config: FinetuneConfig
) -> Float[Array, "B L E"]:
    """The perturbation after an ascent step; as it was where its gradient is not finite."""
    largest = jnp.max(jnp.abs(gradient_BLE), axis=-1, keepdims=True)
    step = config.sift_learning_rate * gradient_BLE / (_STEP_EPS + largest)
    return jnp.where(jnp.all(jnp.isfinite(gradient_BLE)), delta_BLE + step, delta_BLE)


def normalized(x_BLE: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
    """LayerNorm without weights, in float32."""
    x = x_BLE.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + _NORM_EPS)


@contextlib.contextmanager
def perturbed(delta_BLE: Float[Array, "B L E"]) -> Iterator[None]:
    """A model applied inside reads its normalised embeddings plus `delta_BLE`."""

    def add(method, args, kwargs, context):
        if context.module.path == _NORM and context.method_name == "__call__":
            (embeddings_BLE,) = args
            clean = jax.lax.stop_gradient(normalized(embeddings_BLE))
            args = ((clean + delta_BLE).astype(embeddings_BLE.dtype),)
        return method(*args, **kwargs)

    with nn.intercept_methods(add):
        yield


def adversarial_divergence(
    logits_of: Callable[[Params, Key[Array, ""]], Array],
    params: Params,
    clean_logits: Float[Array, "..."],
    divergence: Callable[[Array, Array], Array],
    weights: Float[Array, "*N"],
    shape: tuple[int, int, int],
    rng: Key[Array, ""],
    config: FinetuneConfig,
) -> Float[Array, "*N"]:
    """How far the worst small perturbation moves the outputs of every item.

    Args:
        logits_of: (params, rng) -> logits, the model with its dropout.
        params: its parameters.
        clean_logits: its outputs for the plain text.
        divergence: `Criterion.divergence` of two outputs.
        weights: how much each item counts.
        shape: of the embeddings, [texts, L, E].
        rng: of the perturbation and of the perturbed passes' dropout.
        config: how far to go.
    """
    noise_rng, last_rng, *rngs = jax.random.split(rng, config.sift_steps + 2)

    # The ascent is no part of what is differentiated: a gradient of it would be a second one.
    fixed_params, fixed_logits = jax.lax.stop_gradient((params, clean_logits))

    def apart(params, delta_BLE, clean, pass_rng):
        with perturbed(delta_BLE):
            return divergence(logits_of(params, pass_rng), clean)

    def gain(delta_BLE, pass_rng):
        return jnp.sum(apart(fixed_params, delta_BLE, fixed_logits, pass_rng) * weights)

    delta_BLE = worst_perturbation(gain, first_perturbation(noise_rng, shape, config), rngs, config)
    return apart(params, delta_BLE, clean_logits, last_rng)


def worst_perturbation(
    gain: Gain,
    delta_BLE: Float[Array, "B L E"],
    rngs: Sequence[Key[Array, ""]],
    config: FinetuneConfig,
) -> Float[Array, "B L E"]:
    """The perturbation after an ascent step of `gain(delta, rng)` for each of `rngs`."""
    for pass_rng in rngs:
        gradient_BLE = jax.grad(gain)(delta_BLE, pass_rng)
        delta_BLE = ascended(delta_BLE, gradient_BLE, config)
    return jax.lax.stop_gradient(delta_BLE)
