"""What every picture shares: matplotlib without a display, and where a picture may go."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from deberta_jax.errors import UserError

_ENDINGS = (".png", ".svg", ".pdf")


def new_figure(rows: int, columns: int, width: float, height: float, **options):
    """(figure, axes [rows, columns]), of inches; its parts are laid out so as not to overlap."""
    return pyplot.subplots(
        rows,
        columns,
        figsize=(width, height),
        layout="constrained",
        squeeze=False,
        **options,
    )


def check_path(path: Path) -> Path:
    """Raises `UserError` where no picture can be written to `path`."""
    if path.suffix not in _ENDINGS:
        raise UserError(f"--out={path} is no picture; it must end in {', '.join(_ENDINGS)}")
    return path


def save(figure, path: Path, dpi: int = 100) -> None:
    """Writes a picture, and its directory where there is none; forgets the figure."""
    check_path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    pyplot.close(figure)
