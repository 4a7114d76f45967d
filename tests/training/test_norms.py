"""Norms by part of a model: what the step records, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deberta_jax.objectives.mlm import MaskedLanguageModelling
from deberta_jax.training.groups import Optimizers
from deberta_jax.training.norms import norms_hook, part_names, part_norms
from deberta_jax.training.state import TrainState
from deberta_jax.training.step import make_train_step
from tests.model import small


def norm(*trees):
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(trees)))


def test_every_layer_and_module_has_its_norm(seed):
    config = small.variant(conv_kernel_size=3, num_hidden_layers=4)
    params = small.random_params(config, seed)
    found = dict(zip(part_names(params), np.asarray(part_norms(params)), strict=True))
    encoder, stacked = params["encoder"], params["encoder"]["layers"]["layer"]
    want = {
        "embeddings/word_embeddings": norm(params["embeddings"]["word_embeddings"]),
        "encoder/first_layer": norm(encoder["first_layer"]),
        "encoder/layers/0": norm(jax.tree.map(lambda x: x[0], stacked)),
        "encoder/layers/1": norm(jax.tree.map(lambda x: x[1], stacked)),
        "encoder/last_layer": norm(encoder["last_layer"]),
        "encoder/convolution": norm(
            encoder["convolution"]["kernel"], encoder["convolution"]["bias"]
        ),
    }
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(norm(list(found.values())), norm(params), rtol=1e-5)


def test_a_step_records_weights_gradient_and_update(seed):
    """Under plain descent the update is the learning rate times the gradient."""
    config = small.variant(num_hidden_layers=1)
    params, batch = small.random_params(config, seed), small.random_batch(config, seed)
    objective, optimizer = MaskedLanguageModelling(config), optax.sgd(0.5)
    step = make_train_step(
        objective, Optimizers.single(optimizer, lambda _: 0.5), 1, [norms_hook(1)]
    )
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    after, metrics = jax.device_get(jax.jit(step)(state, batch, 0))
    norms = metrics["norms"]
    np.testing.assert_allclose(norms["weight"], part_norms(params), rtol=1e-5)
    np.testing.assert_allclose(norm(norms["gradient"]), metrics["optim/grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(norms["update"], 0.5 * norms["gradient"], rtol=1e-5)
    moved = jax.tree.map(np.subtract, after.params, jax.device_get(params))
    np.testing.assert_allclose(norms["update"], part_norms(moved), rtol=1e-3, atol=1e-5)
