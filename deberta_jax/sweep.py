"""Many runs of one recipe: python -m deberta_jax.sweep --sweep=FILE --workdir=DIR

FILE is a recipe with `sweep()` or `search(trial)` beside `get_config()` (docs/sweeps.md). Every
variant is checked before anything starts. Run again, the same command goes on: what is done is not
run again, and what was interrupted goes on from its last checkpoint.
"""

import jax
from absl import flags

from deberta_jax import command, storage
from deberta_jax.errors import UserError
from deberta_jax.sweeps import driver
from deberta_jax.sweeps.local import Listed
from deberta_jax.sweeps.variants import Run, command_line, read_file, read_runs

ONLY = ("check", "prepare", "report")


def main(parsed) -> None:
    # The devices are the runs' to take.
    jax.config.update("jax_platforms", "cpu")
    if parsed.only not in ("", *ONLY):
        raise UserError(f"--only={parsed.only} must be one of {', '.join(ONLY)}")
    recipe, workdir = parsed["config"], storage.absolute(command.workdir(parsed))
    file, given = read_file(recipe.config_filename), list(recipe.override_values)

    def arguments(run: Run) -> list[str]:
        return command_line(run, file, given)

    if file.variants is None:
        if parsed.launch or parsed.only:
            raise UserError(
                f"{file.recipe} is a search, which runs here: --launch and --only are not for it"
            )
        chosen = {name: getattr(parsed, name) for name in ("trials", "sampler", "parallel")}
        driver.search(file, parsed.config, workdir, arguments, **chosen)
        return
    runs = read_runs(file, parsed.config, workdir)
    driver.check(runs)
    if parsed.launch:
        driver.hand_over(parsed.launch, file, runs, workdir, arguments)
    elif parsed.only == "check":
        print("\n".join(run.name for run in runs) + f"\n{len(runs)} runs, all as they should be")
    elif parsed.only == "prepare":
        for run in runs:
            driver.ready(run)
    elif parsed.only == "report":
        driver.report(file, runs, workdir)
    else:
        driver.run_here(file, Listed(runs), workdir, parsed.parallel, arguments)


if __name__ == "__main__":
    flags.DEFINE_integer("parallel", 1, "Runs at a time; the cores or devices are divided.")
    flags.DEFINE_string("launch", "", "A launcher with its options, to hand the runs over to.")
    flags.DEFINE_string("only", "", f"Do this alone: {', '.join(ONLY)}.")
    flags.DEFINE_integer("trials", 20, "Trials of a search, in all.")
    flags.DEFINE_string("sampler", "tpe", "How a search chooses: tpe or random.")
    command.run(main, sweep=True)
