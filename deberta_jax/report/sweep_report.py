"""Everything that a sweep leaves to read, from what its runs left."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from deberta_jax import storage
from deberta_jax.report.hparams import write_hparams
from deberta_jax.report.page import write_page
from deberta_jax.report.sweep_results import Result, markdown, table, write_csv
from deberta_jax.report.variant_curves import plot_differences, plot_variants
from deberta_jax.schema import Config


def write_report(
    results: Sequence[Result],
    configs: Mapping[str, Config],
    workdir: Path,
    name: str,
    title: str = "",
    base: str = "",
) -> str:
    """Writes results.csv, results.md, curves.png, differences.png and report.html; and HParams.

    Args:
        results: every run, done or not.
        configs: by variant, its config.
        workdir: where the files go.
        name: of the sweep.
        title: a line about it.
        base: the variant that others are compared with; the first one unless named.

    Returns:
        The table, as Markdown.
    """
    text = markdown(table(results, base))
    workdir.mkdir(parents=True, exist_ok=True)
    write_csv(results, workdir / "results.csv")
    storage.write(workdir / "results.md", text)
    workdirs: dict[str, list[Path]] = {}
    for result in results:
        workdirs.setdefault(result.variant, []).append(result.workdir)
    plot_variants(workdirs, workdir / "curves.png", title=name)
    plot_differences(results, workdir / "differences.png", base=base)
    write_hparams(results)
    write_page(results, configs, workdir / "report.html", name, title, base)
    return text
