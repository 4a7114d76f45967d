"""Tokens sampled block by block: their shares, their bounds, and the same on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from scipy.stats import chisquare

from deberta_jax.kernels.cross_entropy import COLUMNS, Sampling, cross_entropy
from tests.devices import on_eight_devices
from tests.kernels.test_cross_entropy import draw

VOCABULARY = 2 * COLUMNS + 77


def sample(inputs, seed, sampling, *axes, columns=COLUMNS, rows=None):
    hidden, embedding, bias, labels = inputs
    block = (rows or labels.size) * columns
    key = jax.random.key_data(jax.random.key(seed))
    return cross_entropy(
        hidden, embedding, bias, labels, *axes, block_elements=block, sampling=sampling, key=key
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_the_shares_of_sampled_tokens_are_the_softmax(temperature, seed):
    """Chi-square of 40,000 draws from one distribution, an odd number of positions a row."""
    rng = np.random.default_rng(seed)
    batch, positions, width = 8, 5_001, 4
    embedding = rng.normal(0, 0.5, (VOCABULARY, width)).astype("f")
    bias = rng.normal(0, 1, VOCABULARY).astype("f")
    hidden = np.broadcast_to(rng.normal(0, 1, width).astype("f"), (batch, positions, width))
    inputs = jnp.asarray(hidden), embedding, bias, np.zeros((batch, positions), np.int32)
    sampling = Sampling(temperature, 3, VOCABULARY - 5)
    _, _, tokens = jax.jit(lambda *x: sample(x, seed, sampling, columns=COLUMNS))(*inputs)
    logits = (hidden[0, 0].astype("d") @ embedding.T + bias)[3:-5] / temperature
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    counts = np.bincount(np.asarray(tokens).ravel(), minlength=VOCABULARY)
    assert counts[:3].sum() == counts[-5:].sum() == 0  # these ids may not be drawn
    counts, wanted = counts[3:-5], shares * batch * positions
    often = wanted >= 10
    observed = [*counts[often], counts[~often].sum()]
    expected = [*wanted[often], wanted[~often].sum()]
    assert often.sum() > 20 and chisquare(observed, expected).pvalue > 1e-6
    # Neighbours are drawn independently: two positions agree as often as two draws do.
    tokens = np.asarray(tokens)
    chance = (shares**2).sum()
    for one, other in ((tokens[:, 1:], tokens[:, :-1]), (tokens[1:], tokens[:-1])):
        n = one.size
        deviation = np.sqrt(n * chance)
        assert abs((one == other).sum() - n * chance) < 6 * deviation + 5


def test_losses_are_those_without_sampling_and_other_keys_draw_others(seed):
    inputs = draw(seed, VOCABULARY)[:4]
    sampling = Sampling(1.0, 0, VOCABULARY)
    rows = inputs[3].size
    want = cross_entropy(*inputs, block_elements=rows * COLUMNS)
    loss, right, tokens = sample(inputs, seed, sampling)
    np.testing.assert_array_equal(loss, want[0])
    np.testing.assert_array_equal(right, want[1])
    assert not np.array_equal(tokens, sample(inputs, seed + 1, sampling)[2])
    # Blocks of another width draw the same.
    np.testing.assert_array_equal(tokens, sample(inputs, seed, sampling, columns=2 * COLUMNS)[2])


def test_no_gradient_goes_through_the_draw(seed):
    inputs = draw(seed, VOCABULARY)[:4]
    sampling = Sampling(1.0, 0, VOCABULARY)

    def gradient(sampling):
        def total(*arguments):
            block = inputs[3].size * COLUMNS
            options = {} if sampling is None else {"sampling": sampling, "key": np.zeros(2, "I")}
            return jnp.sum(cross_entropy(*arguments, inputs[3], block_elements=block, **options)[0])

        return jax.grad(total, (0, 1, 2))(*inputs[:3])

    jax.tree.map(np.testing.assert_array_equal, gradient(None), gradient(sampling))


def test_the_noise_is_never_whole_in_memory():
    rows, vocabulary, width = 256, 64 * COLUMNS, 8
    shapes = ((1, rows, width), (vocabulary, width), (vocabulary,))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    labels = jax.ShapeDtypeStruct((1, rows), jnp.int32)
    sampling = Sampling(1.0, 0, vocabulary)
    function = jax.jit(lambda *inputs: sample(inputs, 0, sampling))
    compiled = function.lower(*arguments, labels).compile()
    whole = 4 * rows * vocabulary
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 4


def test_every_mesh_draws_the_same_tokens(seed):
    on_eight_devices(check_meshes, seed)


def check_meshes(seed):
    names = ("data", "fsdp", "tensor")
    mesh = jax.make_mesh((2, 2, 2), names, axis_types=(AxisType.Auto,) * 3)
    vocabulary, rows = 2 * (COLUMNS + 70), ("data", "fsdp")
    inputs, sampling = draw(int(seed), vocabulary)[:4], Sampling(1.0, 4, vocabulary - 3)
    _, _, want = jax.jit(lambda *x: sample(x, int(seed), sampling))(*inputs)
    with jax.set_mesh(mesh):
        for axes in ((rows, "tensor", "fsdp"), (("data",), None, "fsdp"), ((), "tensor", None)):
            layouts = (
                PartitionSpec(axes[0]), PartitionSpec(axes[1], axes[2]),
                PartitionSpec(axes[1]), PartitionSpec(axes[0]),
            )  # fmt: skip
            placed = [
                jax.device_put(x, jax.NamedSharding(mesh, layout))
                for x, layout in zip(inputs, layouts, strict=True)
            ]
            draw_there = jax.jit(lambda *x, axes=axes: sample(x, int(seed), sampling, *axes))
            np.testing.assert_array_equal(draw_there(*placed)[2], want)
