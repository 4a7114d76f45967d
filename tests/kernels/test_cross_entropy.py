"""Cross-entropy by blocks of the vocabulary against whole logits in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from deberta_jax.kernels.cross_entropy import COLUMNS, cross_entropy
from tests.devices import on_eight_devices

BATCH, PREDICTIONS, WIDTH = 4, 6, 24
# Columns of a block are a multiple of COLUMNS: one block, blocks and a rest, blocks without one.
VOCABULARIES = (40, 2 * COLUMNS + 77, 3 * COLUMNS)


def draw(seed, vocabulary, dtype=np.float32):
    """(hidden, embedding, bias, labels, weights); some weights are zero, as padding's are."""
    rng = np.random.default_rng(seed)
    rows = (BATCH, PREDICTIONS)
    hidden, embedding, bias = (
        rng.normal(0, 1, shape).astype(np.float32)
        for shape in ((*rows, WIDTH), (vocabulary, WIDTH), (vocabulary,))
    )
    labels = rng.integers(0, vocabulary, rows).astype(np.int32)
    # Half of the positions are as good as sure of their label.
    hidden[:2] += 2 * embedding[labels[:2]]
    weights = rng.uniform(0.5, 2, rows).astype(np.float32)
    weights[0, -2:], weights[-1] = 0, 0
    return (*(jnp.asarray(x, dtype) for x in (hidden, embedding, bias)), labels, weights)


def reference(hidden, embedding, bias, labels, weights):
    """(loss of each position, rightness, gradients of the weighted sum), all in float64."""
    hidden, embedding, bias = (np.asarray(x, np.float64) for x in (hidden, embedding, bias))
    logits = hidden @ embedding.T + bias
    top = logits.max(-1, keepdims=True)
    log_shares = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    shares, one_hot = np.exp(log_shares), np.eye(len(bias))[labels]
    d_logits = (shares - one_hot) * weights[..., None]
    gradients = (
        d_logits @ embedding,
        np.einsum("BPV,BPE->VE", d_logits, hidden),
        d_logits.sum((0, 1)),
    )
    return -(log_shares * one_hot).sum(-1), logits.argmax(-1) == labels, gradients


def losses_and_gradients(hidden, embedding, bias, labels, weights, *axes, columns=COLUMNS):
    def weighted(hidden, embedding, bias):
        rows = labels.size
        for axis in axes[0] if axes else ():
            rows //= jax.sharding.get_abstract_mesh().shape[axis]
        loss, right = cross_entropy(
            hidden, embedding, bias, labels, *axes, block_elements=rows * columns
        )
        return jnp.sum(loss * weights), (loss, right)

    gradients, outputs = jax.grad(weighted, (0, 1, 2), has_aux=True)(hidden, embedding, bias)
    return *outputs, gradients


def check(got, want, tolerance=2e-5):
    loss, right, gradients = got
    want_loss, want_right, want_gradients = want
    np.testing.assert_allclose(loss, want_loss, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(right, want_right)
    assert 0 < want_right.mean() < 1
    for ours, wanted in zip(gradients, want_gradients, strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(np.asarray(ours) / scale, wanted / scale, atol=tolerance)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_blocks_give_what_whole_logits_give(vocabulary, seed):
    inputs = draw(seed, vocabulary)
    check(jax.jit(losses_and_gradients)(*inputs), reference(*inputs))


def test_huge_logits_overflow_nothing(seed):
    hidden, *rest = draw(seed, VOCABULARIES[1])
    inputs = (30 * hidden, *rest)  # logits of several hundred
    got = jax.jit(losses_and_gradients)(*inputs)
    assert np.abs(np.asarray(inputs[0]) @ np.asarray(inputs[1]).T).max() > 200
    check(got, reference(*inputs), tolerance=1e-3)


def test_bfloat16_is_off_by_its_rounding_only(seed):
    inputs = draw(seed, VOCABULARIES[1], jnp.bfloat16)
    loss, _, gradients = jax.jit(losses_and_gradients)(*inputs)
    want_loss, _, want_gradients = reference(*inputs)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-4, atol=1e-4)  # added up in float32
    for ours, wanted in zip(gradients, want_gradients, strict=True):
        assert ours.dtype == jnp.bfloat16
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(np.asarray(ours, np.float64) / scale, wanted / scale, atol=0.02)


def test_rows_of_weight_zero_have_no_gradient(seed):
    hidden, _, _, _, weights = inputs = draw(seed, VOCABULARIES[1])
    _, _, (d_hidden, _, _) = jax.jit(losses_and_gradients)(*inputs)
    np.testing.assert_array_equal(np.asarray(d_hidden)[weights == 0], 0)
    assert np.abs(np.asarray(d_hidden)[weights > 0]).min(axis=-1).max() > 0
    assert hidden.shape == d_hidden.shape


@pytest.mark.parametrize("gradients", [False, True])
def test_the_logits_are_never_all_in_memory(gradients):
    rows, vocabulary, width = 256, 64 * COLUMNS, 8
    shapes = ((1, rows, width), (vocabulary, width), (vocabulary,))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    labels = jax.ShapeDtypeStruct((1, rows), jnp.int32)

    def total(hidden, embedding, bias, labels):
        block = rows * COLUMNS
        loss, right = cross_entropy(hidden, embedding, bias, labels, block_elements=block)
        return jnp.sum(loss), jnp.sum(right)

    function = jax.grad(total, (0, 1, 2), has_aux=True) if gradients else total
    compiled = jax.jit(function).lower(*arguments, labels).compile()
    whole, block = 4 * rows * vocabulary, 4 * rows * COLUMNS
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * block < whole / 8


def test_evaluation_makes_the_logits_once():
    """Matmuls in the program, loops' bodies counted once: one without gradients, four with."""
    arguments = draw(0, VOCABULARIES[2])[:4]

    def total(*arguments):
        return jnp.sum(cross_entropy(*arguments, block_elements=24 * COLUMNS)[0])

    def matmuls(function):
        return str(jax.make_jaxpr(function)(*arguments)).count("dot_general")

    assert matmuls(total) == 1
    assert matmuls(jax.grad(total, (0, 1, 2))) == 4


def test_every_layout_on_a_mesh_gives_the_same(seed):
    on_eight_devices(check_layouts, seed)


def check_layouts(seed):
    names = ("data", "fsdp", "tensor")
    mesh = jax.make_mesh((2, 2, 2), names, axis_types=(AxisType.Auto,) * 3)
    rows = ("data", "fsdp")
    with jax.set_mesh(mesh):
        for vocabulary, axes in (
            (2 * (COLUMNS + 70), (rows, "tensor", "fsdp")),
            (COLUMNS + 71, (rows, None, "fsdp")),  # it does not divide: whole on every device
            (COLUMNS + 70, ((), "tensor", None)),
            (COLUMNS + 70, (("data",), None, "fsdp")),
        ):
            inputs = draw(int(seed), vocabulary)
            table = PartitionSpec(axes[1], axes[2])
            layouts = PartitionSpec(axes[0]), table, PartitionSpec(axes[1])
            layouts += (PartitionSpec(axes[0]),) * 2
            placed = [
                jax.device_put(x, jax.NamedSharding(mesh, layout))
                for x, layout in zip(inputs, layouts, strict=True)
            ]
            step = jax.jit(lambda *x, axes=axes: losses_and_gradients(*x, *axes))
            check(step(*placed), reference(*inputs))
            whole = f"[{vocabulary},{WIDTH}]"
            if axes[1]:  # no device ever holds every row
                assert whole not in step.lower(*placed).compile().as_text()
