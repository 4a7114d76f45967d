"""Sharding as data: rules from logical axes to mesh axes, and what follows from them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deberta_jax.errors import UserError
from deberta_jax.parallel.layout import MeshAxes, splitting_axes

# (logical axis, mesh axes), the preferred one first: see `layout.splitting_axes`.
RULES: tuple[tuple[str, MeshAxes], ...] = (
    ("batch", ("data", "fsdp")),  # rows of the batch
    ("vocab", "tensor"),  # rows of the word embedding, logits
    ("table_width", "fsdp"),  # width of the word embedding, which some axis always splits:
    ("table_width", "data"),  # its gradient crosses the network anyway, and its optimizer's
    ("table_width", "tensor"),  # state is the largest there is
    ("heads", "tensor"),  # attention heads
    ("mlp", "tensor"),  # feed-forward width
    ("embed", "fsdp"),  # residual width of a parameter
    ("length", None),  # tokens of a sequence
    ("activation", None),  # residual width of an activation
    ("head", None),  # width of one head
    ("norm", None),  # LayerNorm scales and biases: small, replicated
    ("layers", None),  # the scan's axis
)

# Parallel ways that the rows of a batch are divided over.
BATCH_AXES = ("data", "fsdp")


def parameter_shardings(abstract: Any, mesh: Mesh) -> Any:
    """NamedSharding of every leaf of an abstract state whose parameters carry logical axes.

    An axis that its mesh axis does not divide stays whole, so that odd vocabularies and head
    counts run; `describe` shows it as replicated.
    """
    specs = nn.get_partition_spec(abstract)

    def sharding(spec, leaf):
        logical = (*spec, *[None] * (leaf.ndim - len(spec)))
        split = splitting_axes(logical, leaf.shape, RULES, mesh)
        axes = (axes[0] if len(axes) == 1 else axes or None for axes in split)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(
        sharding, specs, nn.unbox(abstract), is_leaf=lambda x: isinstance(x, PartitionSpec)
    )


@contextmanager
def on(mesh: Mesh) -> Iterator[None]:
    """Code traced inside lays its activations out on `mesh` by the rules."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raises `UserError` unless every device gets the same number of rows of every microbatch."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if microbatches < 1 or batch_size < 1 or batch_size % (ways * microbatches):
        raise UserError(
            f"train.batch_size {batch_size} does not divide over mesh.data x mesh.fsdp = {ways} "
            f"and train.microbatches = {microbatches}: it must be a multiple of "
            f"{ways * max(1, microbatches)}"
        )


def local_rows(batch_size: int, mesh: Mesh) -> tuple[range, ...]:
    """The rows of a global batch that this process's devices hold, in blocks, in order.

    How many blocks depends on how the mesh winds through the hosts; where the heads are split over
    several processes, these hold the same rows.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    slices = {index[0].indices(batch_size) for index in indices if index is not None}
    blocks: list[range] = []
    for start, stop, _ in sorted(slices):
        if blocks and blocks[-1].stop == start:
            start = blocks.pop().start
        blocks.append(range(start, stop))
    return tuple(blocks)


def to_devices(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows (`local_rows`) of a global batch, as global arrays on the mesh."""
    sharding = batch_sharding(mesh)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    share = ways // sum(map(len, local_rows(ways, mesh)))
    return {
        name: jax.make_array_from_process_local_data(
            sharding, rows, (rows.shape[0] * share, *rows.shape[1:])
        )
        for name, rows in batch.items()
    }


def whole_on_devices(tree: Any, mesh: Mesh) -> Any:
    """The host's scalars and arrays, whole on every device of the mesh; JAX's arrays stay."""
    layout = replicated(mesh)

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array):
            return leaf
        return jax.make_array_from_callback(np.shape(leaf), layout, lambda _: np.asarray(leaf))

    return jax.tree.map(place, tree)


def describe(abstract: Any, mesh: Mesh) -> str:
    """The rules, and every array of more than 64k elements that stays replicated."""
    lines = ["sharding rules: " + "; ".join(f"{axis} -> {_name(to)}" for axis, to in RULES)]
    if mesh.size > 1:
        whole = [
            f"{jax.tree_util.keystr(path, simple=True, separator='/')} {tuple(leaf.shape)}"
            for path, leaf in jax.tree.leaves_with_path(abstract)
            if leaf.sharding.is_fully_replicated and leaf.size > 2**16
        ]
        lines.append("replicated: " + ("; ".join(whole) or "nothing larger than 64k elements"))
    return "\n".join(lines)


def _name(axes: MeshAxes) -> str:
    return "replicated" if axes is None else axes if isinstance(axes, str) else " x ".join(axes)
