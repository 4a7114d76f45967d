"""The step of replaced-token detection on one TPU chip, beside the MLM step of its discriminator.

    python -m benchmarks.rtd_step [--recipes deberta_v3_base] [--chip v5e] [--sequences 32]

Compiled by the TPU compiler; nothing is run. Both steps have the recipe's settings, on so many
sequences; the times are its estimates, the memory is what the program needs.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from deberta_jax import recipes, schema
from deberta_jax.errors import UserError
from deberta_jax.estimates.cost import prepare
from deberta_jax.estimates.report import Report
from deberta_jax.parallel.mesh import MeshConfig
from deberta_jax.runs.compilation import compile_step

RECIPES = (
    "deberta_v3_xsmall", "deberta_v3_small", "deberta_v3_base", "deberta_v3_large",
    "mdeberta_v3_base",
)  # fmt: skip


def report(recipe: str, objective: str, args: argparse.Namespace) -> Report:
    config = schema.freeze(recipes.load(recipe))
    train = dataclasses.replace(config.train, batch_size=args.sequences, microbatches=1)
    compute = dataclasses.replace(config.compute, remat=args.remat)
    config = dataclasses.replace(
        config, objective=objective, train=train, compute=compute, mesh=MeshConfig()
    )
    return compile_step(config, f"{args.chip}:1x1")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--chip", default="v5e", choices=["v5e", "v6e"])
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--remat", default="dots", choices=["none", "dots", "full"])
    args = parser.parse_args(argv)
    prepare()
    print(
        "| recipe | HBM, GiB | fits | RTD, ms | MFU | MLM, ms | RTD / MLM |\n"
        "|---|--:|---|--:|--:|--:|--:|"
    )
    for recipe in args.recipes:
        try:
            rtd, mlm = (report(recipe, objective, args) for objective in ("rtd", "mlm"))
        except UserError as error:
            print(f"| {recipe} | {error} |")
            continue
        print(
            f"| {recipe} | {rtd.hbm_bytes / 2**30:.1f} | {'yes' if rtd.fits else 'no'} "
            f"| {rtd.step_seconds * 1e3:.0f} | {rtd.mfu:.1%} | {mlm.step_seconds * 1e3:.0f} "
            f"| {rtd.step_seconds / mlm.step_seconds:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
