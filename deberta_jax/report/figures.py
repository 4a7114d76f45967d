"""What every picture shares: matplotlib without a display, curves by step, file formats."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from deberta_jax import storage
from deberta_jax.errors import UserError

_ENDINGS = (".png", ".svg", ".pdf")


def new_figure(rows: int, columns: int, width: float, height: float, **options: Any) -> Any:
    """(figure, axes [rows, columns]), of inches; its parts are laid out so as not to overlap."""
    return _pyplot().subplots(
        rows,
        columns,
        figsize=(width, height),
        layout="constrained",
        squeeze=False,
        **options,
    )


def colours(name: str, low: float, high: float, count: int) -> np.ndarray:
    """`count` colours, evenly spaced in the part from `low` to `high` of a named colour map."""
    return _pyplot().get_cmap(name)(np.linspace(low, high, count))


def label_axes(axis: Any, label: str) -> None:
    """Labels a panel that shows `label` by step."""
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)


def draw_curve(
    axis: Any,
    steps: ArrayLike,
    values: ArrayLike,
    band: tuple[ArrayLike, ArrayLike] | None = None,
    gid: str = "curve",
    **style: Any,
) -> None:
    """Draws values by step, and around them a band.

    Args:
        axis: the panel.
        steps: [points].
        values: [points].
        band: (low, high), each [points], or None.
        gid: in an SVG, the line's id is "GID-line", and the band's "GID-span".
        style: of the line; the band has its `color`.
    """
    axis.plot(steps, values, **{"linewidth": 1.4, "gid": f"{gid}-line"} | style)
    if band is not None:
        axis.fill_between(
            steps, *band, color=style["color"], alpha=0.2, linewidth=0, gid=f"{gid}-span"
        )


def check_path(path: Path) -> Path:
    """Raises `UserError` where no picture can be written to `path`."""
    if path.suffix not in _ENDINGS:
        raise UserError(f"--out={path} is no picture; it must end in {', '.join(_ENDINGS)}")
    return path


def save(figure: Any, path: Path, dpi: int = 100) -> None:
    """Writes a picture, and its directory where there is none; closes the figure.

    The same picture is the same file, whenever it is drawn.
    """
    check_path(path).parent.mkdir(parents=True, exist_ok=True)
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    metadata = undated.get(path.suffix)
    with storage.one_line(path), storage.writing(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:], dpi=dpi, metadata=metadata)
    close(figure)


def close(figure: Any) -> None:
    """Frees a figure that is not saved."""
    _pyplot().close(figure)


def _pyplot():
    """Imported only where something is drawn: it takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Ids in an SVG are random without it.
    matplotlib.rcParams["svg.hashsalt"] = "deberta_jax"
    return pyplot
