"""Relative-position profiles: the mean bias of each distance, by layer and head, over real text."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.errors import UserError
from deberta_jax.model import inspection
from deberta_jax.model.config import ModelConfig
from deberta_jax.report import figures

_MEANINGS = {"c2p": "content to position (c2p)", "p2c": "position to content (p2c)"}


class Profiles(NamedTuple):
    """Mean contributions to the scores.

    Attributes:
        bias: {"c2p", "p2c": [layers, heads, 2L - 1]}, of the distances -(L - 1) to L - 1.
        pairs: how many (query, key) pairs each mean is of, [2L - 1]. None: its mean is nan.
    """

    bias: dict[str, np.ndarray]
    pairs: np.ndarray


def position_profiles(
    config: ModelConfig,
    params,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    layers: Sequence[int],
    heads: Sequence[int],
) -> Profiles:
    """The mean of c2p and of p2c over all pairs of tokens of one document at each distance i - j.

    Args:
        config: of the model.
        params: the model's.
        batches: (input_ids, segments), each int32 [B, L]; segment 0 is padding.
        layers: each from 0.
        heads: each from 0.

    Raises:
        UserError: the model has no relative terms, or there is no batch.
    """
    if not config.pos_att_type:
        raise UserError("the model has no relative terms (pos_att_type is empty): no profile")
    total: tuple[dict[str, np.ndarray], np.ndarray] | None = None
    for batch_BL in batches:
        ids_BL, segments_BL = map(jnp.asarray, batch_BL)
        by_part: dict[str, list[jax.Array]] = {part: [] for part in config.pos_att_type}
        layers_inputs = inspection.layer_inputs(config, params, ids_BL, segments_BL)
        for layer, inputs in enumerate(layers_inputs):
            if layer in layers:
                scores = inspection.attention_scores(config, inputs, tuple(heads))
                for part, values in by_part.items():
                    values.append(_sums_by_distance(scores[part], inputs.segments_BL))
            if layer == max(layers):
                break
        pairs = _sums_by_distance(jnp.ones((len(ids_BL), 1, 1, 1)), segments_BL)[0]
        sums = jax.device_get(({part: jnp.stack(x) for part, x in by_part.items()}, pairs))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    if total is None:
        raise UserError("there is no sequence to average over")
    totals, pairs = total
    with np.errstate(invalid="ignore"):
        return Profiles({part: x / pairs for part, x in totals.items()}, pairs)


@jax.jit
def _sums_by_distance(values_BHQK, segments_BL):
    """[heads, 2L - 1]: sums over the pairs of one document, by query - key."""
    length = segments_BL.shape[1]
    seen_BQK = (segments_BL[:, :, None] == segments_BL[:, None]) & (segments_BL[:, None] > 0)
    summed_HQK = jnp.sum(values_BHQK * seen_BQK[:, None], axis=0)
    distances = np.arange(length)[:, None] - np.arange(length) + length - 1
    flat = summed_HQK.reshape(summed_HQK.shape[0], -1).T
    return jax.ops.segment_sum(flat, distances.reshape(-1), 2 * length - 1).T


def draw_profiles(
    profiles: Profiles, title: str, layers: Sequence[int], heads: Sequence[int], path: Path
) -> None:
    """A row for each layer, a column for each term, a line for each head."""
    parts = [part for part in _MEANINGS if part in profiles.bias]
    figure, axes = figures.new_figure(
        len(layers),
        len(parts),
        4.6 * len(parts) + 1.6,
        max(3.2, 1.7 * len(layers) + 1),
        sharex=True,
        sharey=True,
    )
    length = (len(profiles.pairs) + 1) // 2
    distances = np.arange(-length + 1, length)
    colours = figures.colours("turbo", 0.05, 0.95, len(heads))
    for (row, column), axis in np.ndenumerate(axes):
        lines = profiles.bias[parts[column]][row]
        for line, head, colour in zip(lines, heads, colours, strict=True):
            axis.plot(distances, line, color=colour, linewidth=1.2, label=f"head {head + 1}")
        axis.axhline(0, color="black", linewidth=0.6)
        axis.axvline(0, color="black", linewidth=0.6)
        axis.grid(alpha=0.3)
        if row == 0:
            axis.set_title(_MEANINGS[parts[column]], fontsize=10)
        if row == len(layers) - 1:
            axis.set_xlabel("distance in tokens, query − key (log scale)")
        if column == 0:
            axis.set_ylabel(f"layer {layers[row] + 1}\nmean score")
    _distance_scale(axes[0, 0], length)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside right upper", ncols=1 + len(heads) // 13, fontsize=8
    )
    figure.suptitle(title, fontsize=11)
    figures.save(figure, path)


def _distance_scale(axis, length: int) -> None:
    """Powers of two either side of 0, each as far from the last: the near ones matter most."""
    powers = [2**power for power in range(0, 20, 2) if 2**power < length]
    axis.set_xscale("symlog", base=2, linthresh=1)
    axis.set_xticks([*(-power for power in reversed(powers)), 0, *powers])
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_xlim(-length + 1, length - 1)
