"""The report of a sweep: one HTML file that needs nothing else."""

import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from deberta_jax import schema, storage
from deberta_jax.report.series import is_loss, metric_label
from deberta_jax.report.sweep_results import Result, metric_names, summarize
from deberta_jax.report.variant_curves import look, plot_differences, plot_variants
from deberta_jax.schema import Config
from deberta_jax.training.metrics import read_metrics


def write_page(
    results: Sequence[Result],
    configs: Mapping[str, Config],
    path: Path,
    name: str,
    title: str = "",
    base: str = "",
) -> None:
    """Writes `path`.

    Args:
        results: every run of the sweep.
        configs: by variant, its config.
        path: the HTML file.
        name: of the sweep.
        title: a line about it.
        base: the variant that others are compared with; the first one unless named.
    """
    metrics = metric_names(results)
    summaries = summarize(results, base)
    counts = Counter(result.state for result in results)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("page.html").render(
        name=name,
        title=title,
        counts=f"{len(results)} runs: " + ", ".join(f"{n} {state}" for state, n in counts.items()),
        base=next(s.variant for s in summaries if s.differences is None),
        metrics=[{"name": metric.removeprefix("eval/")} for metric in metrics],
        rows=[_row(summary, position, metrics) for position, summary in enumerate(summaries)],
        bars=_svg(lambda file: plot_differences(results, file, base=base)),
        curves=_curves(results, metrics),
        differing=_differing(results, configs),
        common=_common(configs),
        runs=[_run(result, metrics) for result in results],
    )
    storage.write(path, page)


def _row(summary, position: int, metrics: Sequence[str]) -> dict:
    cells = []
    for metric in metrics:
        own = summary.metrics.get(metric)
        cells.append(
            {"value": own.mean if own else "", "text": own.text() if own else "", "kind": ""}
        )
        difference = (summary.differences or {}).get(metric)
        if difference is None:
            cells.append(
                {"value": 0 if summary.differences is None else "", "text": "", "kind": ""}
            )
            continue
        cells.append(
            {
                "value": difference.mean,
                "text": difference.text("+"),
                "kind": _kind(metric, difference),
            }
        )
    done, runs = summary.done, summary.runs
    return {
        "variant": summary.variant,
        "base": summary.differences is None,
        "color": _hexadecimal(position),
        "done": done,
        "seeds": str(done) if done == runs else f"{done} of {runs}",
        "cells": cells,
    }


def _kind(metric: str, difference) -> str:
    """Whether a difference is for the better, where it is larger than its own deviation."""
    if difference.deviation is None or abs(difference.mean) <= difference.deviation:
        return ""
    return "good" if (difference.mean < 0) == is_loss(metric) else "bad"


def _hexadecimal(position: int) -> str:
    from matplotlib.colors import to_hex

    return to_hex(look(position)["color"])


def _curves(results: Sequence[Result], metrics: Sequence[str]) -> list[dict]:
    workdirs: dict[str, list[Path]] = {}
    for result in results:
        workdirs.setdefault(result.variant, []).append(result.workdir)
    drawn = []
    for metric in [*(metrics or ["eval/loss"]), "train/loss", "optim/grad_norm"]:
        svg = _svg(lambda file, metric=metric: plot_variants(workdirs, file, metric))
        if svg:
            drawn.append({"label": metric_label(metric), "svg": svg})
    return drawn


def _svg(draw) -> Markup | str:
    """What `draw(file)` draws, as an element; nothing where it draws nothing."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "picture.svg"
        if draw(file) is None:
            return ""
        text = file.read_text(encoding="utf-8")
    # Several pictures share one page, and their ids with it.
    mark = f"p{zlib.crc32(text.encode()):x}-"
    text = re.sub(r'(\bid="|\bxlink:href="#|url\(#)(?!variant-)', rf"\g<1>{mark}", text)
    return Markup(text[text.index("<svg") :])


def _differing(results: Sequence[Result], configs: Mapping[str, Config]) -> list[dict]:
    """The fields that are not the same in all variants; seeds, names and directories left out."""
    fields = {variant: schema.flatten(config) for variant, config in configs.items()}
    changes = {result.variant: result.changes for result in results}
    comments = schema.comments()
    rows = []
    for name in schema.flatten(Config()):
        values = [fields[variant][name] for variant in fields]
        if name == "seed" or all(value == values[0] for value in values):
            continue
        cells = [
            {"text": repr(fields[variant][name]), "set": name in changes[variant]}
            for variant in fields
        ]
        rows.append({"name": name, "comment": comments[name], "cells": cells})
    return rows


def _common(configs: Mapping[str, Config]) -> list[dict]:
    every = [schema.flatten(config) for config in configs.values()]
    comments = schema.comments()
    return [
        {"name": name, "comment": comments[name], "text": repr(value)}
        for name, value in every[0].items()
        if name != "seed" and all(fields[name] == value for fields in every)
    ]


def _run(result: Result, metrics: Sequence[str]) -> dict:
    speeds = [
        line["perf/tokens_per_second"]
        for line in read_metrics(result.workdir)
        if "perf/tokens_per_second" in line
    ]
    speed = sum(speeds) / len(speeds) if speeds else None
    return {
        "name": result.name,
        "state": result.state,
        "step": result.step,
        "failure": result.failure,
        "metrics": [
            f"{result.metrics[name]:.4f}" if name in result.metrics else "" for name in metrics
        ],
        "speed": "" if speed is None else speed,
        "speed_text": "" if speed is None else f"{speed:,.0f}",
    }
