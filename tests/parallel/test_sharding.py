"""Meshes and rules; and that a sharded step is the step of one device."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from deberta_jax.errors import UserError
from deberta_jax.objectives.mlm import MaskedLanguageModelling
from deberta_jax.objectives.mlm_clm import MaskedAndCausalLanguageModelling
from deberta_jax.parallel import sharding
from deberta_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from deberta_jax.training.config import OptimizerConfig
from deberta_jax.training.groups import Optimizers
from deberta_jax.training.norms import norms_hook
from deberta_jax.training.optimizer import make_optimizer, make_schedule
from deberta_jax.training.state import abstract_params, abstract_state
from deberta_jax.training.step import make_train_step
from deberta_jax.training.step_units import StepUnits
from tests.devices import on_eight_devices
from tests.model import small

MESH = AbstractMesh((2, 2, 2), AXES)
DROPOUT = dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)


def layouts(config, mesh=MESH):
    """{parameter: partition spec}."""
    objective = MaskedLanguageModelling(config)
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    shardings = sharding.parameter_shardings(boxed, mesh)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec
        for path, leaf in jax.tree.leaves_with_path(shardings)
    }


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(make_mesh(MeshConfig(), jax.devices()[:1]).shape) == dict.fromkeys(AXES, 1)


@pytest.mark.parametrize(
    ("sizes", "devices"),
    [((3, 1, 1), 8), ((2, 2, 1), 8), ((-1, 3, 1), 8), ((16, 1, 1), 8), ((-1, 16, 1), 8)],
)
def test_a_mesh_that_does_not_fit_is_an_error_that_counts_the_devices(sizes, devices):
    with pytest.raises(UserError, match=rf"mesh\.data={sizes[0]}, .*does not fit {devices} device"):
        make_mesh(MeshConfig(*sizes), list(range(devices)))


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-2, 1, 1), (-1, -1, 1), (1, 1, 0)])
def test_sizes_of_no_mesh_are_an_error(sizes):
    with pytest.raises(UserError, match=r"mesh\.tensor=\S+: sizes must be at least 1"):
        make_mesh(MeshConfig(*sizes), list(range(8)))


@pytest.mark.parametrize(
    ("batch_size", "microbatches"), [(0, 1), (6, 1), (8, 4), (8, 0), (8, -1), (-4, 1)]
)
def test_a_batch_must_divide_over_devices_and_microbatches(batch_size, microbatches):
    with pytest.raises(UserError, match=rf"train\.batch_size {batch_size} .*must be a multiple of"):
        sharding.check_batch(batch_size, microbatches, MESH)


@pytest.mark.parametrize(("batch_size", "microbatches"), [(4, 1), (8, 2), (24, 3)])
def test_tensor_devices_share_the_rows(batch_size, microbatches):
    sharding.check_batch(batch_size, microbatches, MESH)


@pytest.mark.parametrize("options", small.VARIANTS.values(), ids=small.VARIANTS.keys())
def test_every_matrix_is_split_and_every_norm_whole(options):
    for name, spec in layouts(small.variant(**options)).items():
        split = {axis for axis in spec if axis}
        if name.endswith(("kernel", "embedding")):
            assert split, name
        if "norm/" in name:
            assert not split, name


def test_the_rules_lay_out_the_large_arrays():
    found = layouts(small.variant())
    assert found["embeddings/word_embeddings/embedding"] == PartitionSpec("tensor", "fsdp")
    stack = "encoder/layers/layer"
    assert found[f"{stack}/intermediate/kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert found[f"{stack}/output/kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert found[f"{stack}/attention/qkv_kernel"] == PartitionSpec(
        None, "fsdp", None, "tensor", None
    )


def test_an_axis_that_does_not_divide_stays_whole():
    found = layouts(small.variant(vocab_size=121, num_attention_heads=3, hidden_size=48))
    assert found["embeddings/word_embeddings/embedding"] == PartitionSpec(None, "fsdp")
    assert "tensor" not in found["encoder/last_layer/attention/qkv_kernel"]


def test_large_arrays_that_stay_whole_are_named():
    config = small.variant(vocab_size=2001, hidden_size=45, num_attention_heads=3)
    abstract = abstract_params(MaskedLanguageModelling(config), MESH)
    text = sharding.describe(abstract, MESH)
    assert "vocab -> tensor" in text and "batch -> data x fsdp" in text
    assert "embeddings/word_embeddings/embedding (2001, 45)" in text.splitlines()[1]


def test_a_sharded_step_is_the_step_of_one_device(seed):
    on_eight_devices(check_sharded_steps, "mlm", 120, 2, 2, seed)


def test_so_is_one_of_both_passes_over_a_vocabulary_that_does_not_divide(seed):
    on_eight_devices(check_sharded_steps, "mlm_clm", 121, 1, 1, seed)


def check_sharded_steps(objective, vocab_size, layers, microbatches, seed):
    """Some steps, with dropout, on one device and on data 2 x fsdp 2 x tensor 2."""
    sizes = dict(vocab_size=int(vocab_size), num_hidden_layers=int(layers))
    config = small.variant(**sizes, **DROPOUT)
    meshes = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), make_mesh(MeshConfig(2, 2, 2))
    assert [mesh.size for mesh in meshes] == [1, 8]
    kinds = {"mlm": MaskedLanguageModelling, "mlm_clm": MaskedAndCausalLanguageModelling}
    settings = kinds[objective](config), int(microbatches), int(seed)
    (one, metrics_one), (eight, metrics_eight) = (run_steps(mesh, *settings) for mesh in meshes)
    norms_one, norms_eight = metrics_one.pop("norms"), metrics_eight.pop("norms")
    for kind, value in norms_one.items():
        np.testing.assert_allclose(norms_eight[kind], value, rtol=1e-3, atol=1e-6, err_msg=kind)
    for name, value in metrics_one.items():
        np.testing.assert_allclose(metrics_eight[name], value, rtol=2e-5, err_msg=name)
    assert metrics_one["optim/grad_norm"] > 0.1
    pairs = zip(jax.tree.leaves_with_path(one), jax.tree.leaves(eight), strict=True)
    for (path, want), ours in pairs:
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(ours, want, rtol=1e-3, atol=1e-5, err_msg=name)
    assert np.abs(one.params["lm_head"]["bias"]).max() > 1e-3  # it was 0

    word_rows = 60 if config.vocab_size % 2 == 0 else config.vocab_size
    for tree in (eight.params, *moments(eight)):
        check_shards(tree["embeddings"]["word_embeddings"]["embedding"], (word_rows, 24))
        layer = tree["encoder"]["last_layer"]
        check_shards(layer["intermediate"]["kernel"], (24, 32))
        check_shards(layer["attention"]["qkv_kernel"], (24, 3, 2, 12))


def run_steps(mesh, objective, microbatches, seed, steps=3):
    settings = OptimizerConfig(learning_rate=1e-3, warmup="0", clip_norm=1.0)
    rate = make_schedule(settings, StepUnits(1.0, 1.0, 10))
    optimizer = make_optimizer(settings, rate)
    abstract, initialize = abstract_state(objective, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    whole = sharding.replicated(mesh)
    step = jax.jit(
        make_train_step(
            objective, Optimizers.single(optimizer, rate), microbatches, [norms_hook(1)]
        ),
        in_shardings=(shardings, sharding.batch_sharding(mesh), whole),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )
    with sharding.on(mesh):
        state = initialize(jax.random.key(seed))
        for number in range(steps):
            batch = small.random_batch(objective.config, seed + number, batch=8)
            state, metrics = step(state, sharding.to_devices(batch, mesh), np.uint32(seed))
    return state, jax.device_get(metrics)


def moments(state):
    (adam,) = (part for part in state.opt_state if hasattr(part, "mu"))
    return adam.mu, adam.nu


def check_shards(array, shape):
    """Every device holds one part of this shape, and no more."""
    assert not array.sharding.is_fully_replicated
    assert len(array.addressable_shards) == 8
    assert {shard.data.shape for shard in array.addressable_shards} == {shape}
