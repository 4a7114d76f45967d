"""Does a run fit a TPU pod, and how fast can it be? Without a TPU:

    python -m deberta_jax.compile --config=FILE --topology=v5e:16x16 [--slices=2] [--json=FILE]
        [--fit | --compare='fsdp=256;data=4,fsdp=64'] [--quick]

compiles the training step that `train` would run there, and adds up what the compiler says of it.
Exit status 1: it does not fit.
"""

import sys
from pathlib import Path

import jax
from absl import flags

from deberta_jax import command, storage
from deberta_jax.errors import UserError
from deberta_jax.estimates.cost import prepare
from deberta_jax.estimates.report import gib
from deberta_jax.runs import directories
from deberta_jax.runs.compilation import compile_step, fit, meshes, side_by_side


def main(parsed) -> None:
    if not parsed.topology:
        raise UserError("--topology is missing; it names what to compile for, such as v5e:4x4")
    if parsed.fit and parsed.compare:
        raise UserError("--fit and --compare are two different questions; ask one of them")
    if parsed.json and "://" not in parsed.json:
        directories.check_file(Path(parsed.json).expanduser(), "--json")
    config, pod = command.config(parsed), (parsed.topology, parsed.slices)
    prepare(schedules=not parsed.quick)
    if parsed.quick:
        jax.config.update("jax_optimization_level", "O1")
    if parsed.fit:
        reports = fit(config, *pod)
    elif parsed.compare:
        reports = [compile_step(one, *pod) for one in meshes(config, parsed.compare)]
    else:
        reports = [compile_step(config, *pod)]
    fitting = [one for one in reports if one.fits]
    if len(reports) == 1:
        print(reports[0].describe())
    else:
        print(side_by_side(reports))
    best = min(fitting, key=lambda one: one.step_seconds / one.job.batch_size, default=None)
    if parsed.fit and best and not parsed.quick:
        print(
            f"fastest: compute.remat={best.job.remat}, "
            f"{best.job.batch_size // best.job.batch_ways} sequences a device "
            f"(train.batch_size={best.job.batch_size})\n{best.describe()}"
        )
    if parsed.json:
        values = [one.to_dict() for one in reports]
        path = storage.user_path(parsed.json)
        storage.write_json(path, values[0] if len(values) == 1 else values)
    if not fitting:
        last = reports[-1]
        print(
            f"does not fit by {gib(last.hbm_bytes - last.chip.hbm_bytes)} a device; try "
            + ", or ".join(last.remedies()),
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_string("topology", None, "What to compile for: one slice, such as v5e:16x16.")
    flags.DEFINE_integer("slices", 1, "Slices of that topology.", lower_bound=1)
    flags.DEFINE_string("json", None, "File for the report.")
    flags.DEFINE_bool("fit", False, "Find the largest batch a device that fits, for each remat.")
    flags.DEFINE_string("compare", None, "Meshes to compare: 'data=4,fsdp=4;fsdp=16'.")
    flags.DEFINE_bool("quick", False, "In a quarter of the time: what fits, and what is sent.")
    command.run(main, workdir=False)
