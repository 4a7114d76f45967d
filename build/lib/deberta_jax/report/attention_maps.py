"""Attention maps of a sentence, and the parts of the scores apart (the paper's Figure 2)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from deberta_jax.errors import UserError
from deberta_jax.model import inspection
from deberta_jax.model.config import ModelConfig
from deberta_jax.report import figures

PROBABILITIES = "attention"
PARTS = (PROBABILITIES, "c2c", "c2p", "p2c")
# Tokens of the longest sentence whose map can be read.
LONGEST = 64
_MEANINGS = {
    PROBABILITIES: "attention",
    "c2c": "content to content",
    "c2p": "content to position",
    "p2c": "position to content",
}
# Inches of a token, and of the smallest panel.
_TOKEN, _PANEL = 0.14, 2.3


class AttentionMap(NamedTuple):
    """The maps of one layer.

    Attributes:
        title: which model and layer.
        tokens: the text of each token.
        rows: what each map is of: "head 3".
        panels: {"attention", "c2c", ...: [rows, L, L]} (query, key), float32.
    """

    title: str
    tokens: Sequence[str]
    rows: Sequence[str]
    panels: dict[str, np.ndarray]


def attention_map(
    config: ModelConfig,
    params,
    ids: np.ndarray,
    layer: int,
    heads: Sequence[int],
    decoder_pass: int = 0,
) -> dict[str, np.ndarray]:
    """{"attention", "c2c", "c2p", "p2c"}: [heads, L, L] of one sentence.

    Args:
        config: of the model.
        params: the model's.
        ids: the sentence's tokens, int32 [L].
        layer: from 0.
        heads: each from 0.
        decoder_pass: 0 for the layer itself; 1 and 2 for the Enhanced Mask Decoder's passes, which
            are the last layer's with other queries.

    Raises:
        UserError: the sentence has more tokens than the model has positions, or than can be read.
    """
    has_position_limit = config.position_biased_input or decoder_pass
    limit = min(LONGEST, config.max_position_embeddings) if has_position_limit else LONGEST
    if len(ids) > limit:
        raise UserError(f"the sentence has {len(ids)} tokens; it must have at most {limit}")
    ids_BL = jnp.asarray(ids)[None]
    layers = inspection.layer_inputs(config, params, ids_BL)
    inputs = next(inputs for number, inputs in enumerate(layers) if number == layer)
    if decoder_pass:
        passes = inspection.decoder_inputs(config, params, inputs)
        inputs = next(inputs for number, inputs in enumerate(passes, 1) if number == decoder_pass)
    scores = inspection.attention_scores(config, inputs, tuple(heads))
    probabilities = inspection.attention_probabilities(config, scores, inputs.segments_BL)
    return {part: np.asarray(x[0]) for part, x in ({PROBABILITIES: probabilities} | scores).items()}


def draw_maps(maps: Sequence[AttentionMap], parts: Sequence[str], path: Path) -> None:
    """One row for each head, one column for each part of each map, on shared scales.

    Raises:
        UserError: a map has none of `parts`.
    """
    columns = [(shown, part) for shown in maps for part in parts if part in shown.panels]
    for shown in maps:
        if not any(part in shown.panels for part in parts):
            raise UserError(
                f"{shown.title} has no {', '.join(parts)}; it has {', '.join(shown.panels)}"
            )
    rows = max(len(shown.rows) for shown in maps)
    widths = [max(_PANEL, _TOKEN * len(shown.tokens)) for shown, _ in columns]
    figure, axes = figures.new_figure(
        rows, len(columns), sum(widths) + 2.5, rows * max(widths) + 1.2, width_ratios=widths
    )
    scales = _scales(columns)
    images = {}
    for column, (shown, part) in enumerate(columns):
        first = column == 0 or columns[column - 1][0] is not shown
        for row, axis in enumerate(axes[:, column]):
            if row >= len(shown.rows):
                axis.set_axis_off()
                continue
            kind = PROBABILITIES if part == PROBABILITIES else "score"
            images[kind] = axis.imshow(shown.panels[part][row], **scales[kind])
            _label(axis, shown.tokens, first, row == len(shown.rows) - 1)
            if first:
                axis.set_ylabel(f"{shown.rows[row]}: query")
        axes[len(shown.rows) - 1, column].set_xlabel("key")
        heading = _MEANINGS[part] + (f" ({part})" if part != PROBABILITIES else "")
        axes[0, column].set_title(f"{shown.title}\n{heading}" if first else heading, fontsize=10)
    labels = {
        PROBABILITIES: "attention probability",
        "score": "score (part of the softmax's input)",
    }
    for kind, image in images.items():
        figure.colorbar(image, ax=axes.ravel().tolist(), label=labels[kind], aspect=30, pad=0.01)
    figures.save(figure, path)


def _scales(columns) -> dict[str, dict]:
    """One scale for all probabilities; one, even about 0, for all parts of scores."""
    chances = [shown.panels[part].max() for shown, part in columns if part == PROBABILITIES]
    scores = [np.abs(shown.panels[part]).max() for shown, part in columns if part != PROBABILITIES]
    most = max(scores, default=1.0)
    return {
        PROBABILITIES: dict(cmap="viridis", vmin=0, vmax=max(chances, default=1.0)),
        "score": dict(cmap="RdBu_r", vmin=-most, vmax=most),
    }


def _label(axis, tokens, left: bool, bottom: bool) -> None:
    """Every token on the outer sides; ticks alone within."""
    ticks = range(len(tokens))
    axis.set_xticks(ticks, tokens if bottom else [], rotation=90, fontsize=7)
    axis.set_yticks(ticks, tokens if left else [], fontsize=7)
    axis.tick_params(length=1.5, pad=1.5)
