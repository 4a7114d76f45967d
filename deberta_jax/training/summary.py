"""What is printed before the first step: devices, mesh, parameters, sharding, cost."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from deberta_jax.parallel import sharding
from deberta_jax.training.program import TrainProgram


def devices_line(mesh: Mesh) -> str:
    kinds = sorted({device.device_kind for device in mesh.devices.flat})
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return (
        f"devices: {mesh.size} x {', '.join(kinds)} in {jax.process_count()} process(es); "
        f"mesh: {axes}"
    )


def parameter_table(abstract_params: Any) -> str:
    """A row for each parameter: name, shape, layout on the mesh, number of elements."""
    rows = []
    for path, leaf in jax.tree.leaves_with_path(abstract_params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = " x ".join(map(str, leaf.shape))
        layout = ", ".join(
            "-" if axis is None else axis if isinstance(axis, str) else "*".join(axis)
            for axis in leaf.sharding.spec
        )
        whole = "whole" if leaf.sharding.is_fully_replicated else f"({layout})"
        rows.append((name, shape, whole, f"{math.prod(leaf.shape):,}"))
    total = f"{sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params)):,}"
    rows.append(("total", "", "", total))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for *left, count in rows:
        cells = [cell.ljust(width) for cell, width in zip(left, widths, strict=False)]
        lines.append("  ".join(["", *cells, count.rjust(widths[-1])]))
    return "\n".join(["parameters:", *lines])


def describe(program: TrainProgram, batch_size: int, flops_per_token: float) -> str:
    """Everything a person wants to know of a run before it starts."""
    units = program.units
    return "\n".join(
        [
            devices_line(program.mesh),
            parameter_table(program.abstract.params),
            sharding.describe(program.abstract, program.mesh),
            f"{units.total_steps:,} steps of {batch_size:,} sequences = "
            f"{units.tokens_per_step:,.0f} tokens; {units.steps_per_epoch:,.1f} steps an "
            f"epoch; {flops_per_token / 1e6:,.1f} MFLOPs a token (forward and backward)",
        ]
    )
