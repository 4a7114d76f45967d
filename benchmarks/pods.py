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
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, PLOT = ROOT / "docs/pods.md", ROOT / "docs/images/pods_scaling.png"
# Shards of the state that are at least 64 numbers wide are gathered and scattered; narrower ones
# the compiler copies and sums whole.
SIXTEENTHS = {"mesh.data": -1, "mesh.fsdp": 16}
# name: (recipe, topology, slices, overrides)
RECIPES = {
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
SCALING = {
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
    """The report of a job, made unless it is there; None where the compiler gave none."""
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
    for name, found in reports.items():
        slices = f"{found['slices']} x " * (found["slices"] > 1)
        cells = [f"`{(RECIPES | SCALING)[name][0]}`", f"{slices}`{found['topology']}`"]
        cells.append(" x ".join(f"{a} {n}" for a, n in found["mesh"].items() if n > 1))
        cells += [f"{found['sequences_per_device']:g}", found["remat"]]
        cells.append(f"{found['hbm_bytes'] / 2**30:.2f} of {found['hbm_limit_bytes'] / 2**30:.2f}")
        if found["fits"]:
            longest = found["collectives"][0]
            cells += [f"{1e3 * found['estimated_step_seconds']:.0f}"]
            cells += [f"{1e3 * found['estimated_exposed_seconds']:.1f}"]
            cells += [f"{found['estimated_tokens_per_second_per_chip']:,.0f}"]
            cells += [f"{found['estimated_mfu']:.1%}", f"{longest['kind']}, {longest['link']}"]
            cells += [f"{found['estimated_days']:.1f}", f"{found['estimated_chip_hours']:,.0f}"]
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
    for found in reports.values():
        slices = f"{found['slices']} x " * (found["slices"] > 1)
        waits = [1e3 * waiting(found, link) for link in ("ICI", "DCN")]
        lines.append(
            f"| {found['chips']} | {slices}`{found['topology']}` "
            f"| {1e3 * found['estimated_step_seconds']:.1f} | {waits[0]:.1f} | {waits[1]:.1f} "
            f"| {found['estimated_tokens_per_second_per_chip']:,.0f} "
            f"| {first / found['estimated_step_seconds']:.1%} |"
        )
    return "\n".join(lines)


def waiting(found: dict, link: str) -> float:
    return sum(row["exposed_seconds"] for row in found["collectives"] if row["link"] == link)


def plot(reports: dict[str, dict]) -> None:
    """Efficiency, and what each kind of collective costs, by the number of chips."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chips = [found["chips"] for found in reports.values()]
    steps = [found["estimated_step_seconds"] for found in reports.values()]
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
            1e3 * sum(row["exposed_seconds"] for row in found["collectives"]
                      if (row["kind"], row["link"]) == (kind, link))
            for found in reports.values()
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
    figure.savefig(PLOT, dpi=120)


def put(name: str, text: str) -> None:
    """Replaces what is between the markers of that name in the page."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = PAGE.read_text()
    before, _, rest = page.partition(begin)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reports", type=Path, default=ROOT / "runs/pods")
    parser.add_argument("--only", default="", help="jobs whose name holds this; writes nothing")
    told = parser.parse_args()
    told.reports.mkdir(parents=True, exist_ok=True)
    made = {name: report(name, told.reports) for name in RECIPES | SCALING if told.only in name}
    made = {name: found for name, found in made.items() if found}
    if told.only:
        return
    put("recipes", recipe_table(made))
    scaling = {name: found for name, found in made.items() if name in SCALING and found["fits"]}
    if scaling:
        picture = "![efficiency by the number of chips, and what costs it](images/pods_scaling.png)"
        put("scaling", f"{scaling_table(scaling)}\n\n{picture}")
        plot(scaling)


if __name__ == "__main__":
    main()
