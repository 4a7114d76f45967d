"""The tables and the plot of docs/pods.md: what every recipe needs and takes on TPU pods.

    python -m benchmarks.pods [--reports=DIR] [--only=NAME]

Compiles each job by `deberta_jax.compile` (minutes of two cores each; reports that are in DIR
already are not made again), then writes the tables between the markers of docs/pods.md, and
docs/images/pods_scaling.png.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, PLOT = ROOT / "docs/pods.md", ROOT / "docs/images/pods_scaling.png"
# Shards of the state that are at least 64 numbers wide are gathered and scattered; narrower ones
# the compiler copies and sums whole.
SIXTEENTHS = {"mesh.data": -1, "mesh.fsdp": 16}
# name: (recipe, topology, slices, overrides)
Jobs = dict[str, tuple[str, str, int, dict[str, int]]]
RECIPES: Jobs = {
    "v3_base_16": (
        "deberta_v3_base", "v5e:4x4", 1,
        {"train.batch_size": 512, "mesh.data": 1, "mesh.fsdp": 16},
    ),
    "v2_xxlarge_slices": ("deberta_v2_xxlarge", "v5e:16x16", 2, {}),
    "v2_xxlarge": ("deberta_v2_xxlarge", "v6e:16x16", 1, SIXTEENTHS),
    "v1_large": ("deberta_v1_large", "v5p:4x4x4", 1, SIXTEENTHS),
    "v2_xlarge": ("deberta_v2_xlarge", "v6e:8x16", 1, SIXTEENTHS),
    "v1_xlarge": ("deberta_v1_xlarge", "v5p:4x4x8", 1, SIXTEENTHS),
    "v1_large_v4": ("deberta_v1_large", "v4:4x4x4", 1, SIXTEENTHS),
    "v2_xxlarge_tpu7x": ("deberta_v2_xxlarge", "tpu7x:4x4x4", 1, SIXTEENTHS),
    "v1_base": ("deberta_v1_base", "v5e:8x8", 1, {}),
}  # fmt: skip
# v3 large, 32 sequences a chip: a slice as far as there are slices, then several.
SCALING: Jobs = {
    f"v3_large_{chips}": (
        "deberta_v3_large",
        topology,
        slices,
        {"train.batch_size": 32 * chips, **SIXTEENTHS},
    )
    for chips, topology, slices in (
        (16, "v5e:4x4", 1),
        (64, "v5e:8x8", 1),
        (256, "v5e:16x16", 1),
        (1024, "v5e:16x16", 4),
    )
}


def report(name: str, folder: Path) -> dict | None:
    """The report of a job, made unless it exists; None where the compiler gave none."""
    recipe, topology, slices, overrides = (RECIPES | SCALING)[name]
    path = folder / f"{name}.json"
    if not path.exists():
        command = [sys.executable, "-m", "deberta_jax.compile", f"--config=configs/{recipe}.py"]
        command += [f"--topology={topology}", f"--slices={slices}", f"--json={path}"]
        command += [f"--config.{field}={value}" for field, value in overrides.items()]
        print(" ".join(command), flush=True)
        subprocess.run(command, cwd=ROOT, check=False)
    return json.loads(path.read_text()) if path.exists() else None


def recipe_table(reports: dict[str, dict]) -> str:
    head = (
        "recipe", "on", "mesh", "sequences a device", "remat", "HBM, GiB", "step, ms",
        "waiting, ms", "tokens/s a chip", "MFU", "longest collective", "days", "chip-hours",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, job in reports.items():
        slices = f"{job['slices']} x " * (job["slices"] > 1)
        cells = [f"`{(RECIPES | SCALING)[name][0]}`", f"{slices}`{job['topology']}`"]
        cells.append(" x ".join(f"{a} {n}" for a, n in job["mesh"].items() if n > 1))
        cells += [f"{job['sequences_per_device']:g}", job["remat"]]
        cells.append(f"{job['hbm_bytes'] / 2**30:.2f} of {job['hbm_limit_bytes'] / 2**30:.2f}")
        if job["fits"]:
            longest = job["collectives"][0]
            cells += [f"{1e3 * job['estimated_step_seconds']:.0f}"]
            cells += [f"{1e3 * job['estimated_exposed_seconds']:.1f}"]
            cells += [f"{job['estimated_tokens_per_second_per_chip']:,.0f}"]
            cells += [f"{job['estimated_mfu']:.1%}", f"{longest['kind']}, {longest['link']}"]
            cells += [f"{job['estimated_days']:.1f}", f"{job['estimated_chip_hours']:,.0f}"]
        else:
            cells += ["does not fit", *[""] * 6]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def scaling_table(reports: dict[str, dict]) -> str:
    lines = [
        "| chips | on | step, ms | waiting for ICI, ms | for DCN, ms | tokens/s a chip "
        "| efficiency |",
        "|--:|---|--:|--:|--:|--:|--:|",
    ]
    first = next(iter(reports.values()))["estimated_step_seconds"]
    for job in reports.values():
        slices = f"{job['slices']} x " * (job["slices"] > 1)
        waits = [1e3 * waiting(job, link) for link in ("ICI", "DCN")]
        lines.append(
            f"| {job['chips']} | {slices}`{job['topology']}` "
            f"| {1e3 * job['estimated_step_seconds']:.1f} | {waits[0]:.1f} | {waits[1]:.1f} "
            f"| {job['estimated_tokens_per_second_per_chip']:,.0f} "
            f"| {first / job['estimated_step_seconds']:.1%} |"
        )
    return "\n".join(lines)


def waiting(job: dict, link: str) -> float:
    return sum(row["exposed_seconds"] for row in job["collectives"] if row["link"] == link)


def plot(reports: dict[str, dict], path: Path) -> None:
    """Efficiency, and what each kind of collective costs, by the number of chips."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chips = [job["chips"] for job in reports.values()]
    steps = [job["estimated_step_seconds"] for job in reports.values()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot(chips, [100 * steps[0] / step for step in steps], marker="o")
    left.set(xscale="log", xlabel="chips", ylabel="efficiency, %", ylim=(0, 105))
    left.set_title("v3 large, 32 x 512 tokens a chip, v5e")
    kinds = sorted(
        {(row["kind"], row["link"]) for f in reports.values() for row in f["collectives"]}
    )
    bottom = [0.0] * len(chips)
    for kind, link in kinds:
        heights = [
            1e3 * sum(row["exposed_seconds"] for row in job["collectives"]
                      if (row["kind"], row["link"]) == (kind, link))
            for job in reports.values()
        ]  # fmt: skip
        if max(heights) > 0.01 * 1e3 * max(steps) / 100:
            right.bar([str(n) for n in chips], heights, bottom=bottom, label=f"{kind}, {link}")
            bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
    right.set(xlabel="chips", ylabel="ms a step that nothing hides")
    right.set_title("waiting for the network")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.set_xticks(chips, [str(n) for n in chips])
    left.minorticks_off()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def put(path: Path, name: str, text: str) -> None:
    """Replaces what is between the markers of that name in a page."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = path.read_text()
    before, _, rest = page.partition(begin)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reports", type=Path, default=ROOT / "runs/pods")
    parser.add_argument("--only", default="", help="jobs whose name contains this; writes nothing")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page with the tables")
    parser.add_argument("--plot", type=Path, default=PLOT)
    args = parser.parse_args(argv)
    args.reports.mkdir(parents=True, exist_ok=True)
    reports = {}
    for name in RECIPES | SCALING:
        if args.only in name and (job := report(name, args.reports)):
            reports[name] = job
    if args.only:
        return
    put(args.page, "recipes", recipe_table(reports))
    scaling = {name: job for name, job in reports.items() if name in SCALING and job["fits"]}
    if scaling:
        picture = "![efficiency by the number of chips, and what costs it](images/pods_scaling.png)"
        put(args.page, "scaling", f"{scaling_table(scaling)}\n\n{picture}")
        plot(scaling, args.plot)


if __name__ == "__main__":
    main()
