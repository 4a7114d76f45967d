"""Reading a sweep file: its variants, each checked against the schema before anything starts."""

import dataclasses
import hashlib
import json
import re
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from deberta_jax import recipes, schema
from deberta_jax.data.dataset import data_directory
from deberta_jax.data.metadata import shaping_settings
from deberta_jax.errors import UserError
from deberta_jax.schema import Config

# Only a seed apart, runs are repetitions of one variant.
SEED = "seed"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,99}")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        variant: the name that it shares with its repetitions.
        overrides: the fields that the variant sets, by dotted name.
        config: the recipe with them.
        workdir: where it runs.
    """

    variant: str
    overrides: Mapping[str, object]
    config: Config
    workdir: Path

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def name(self) -> str:
        return self.workdir.name

    @property
    def data(self) -> Path:
        return data_directory(self.config.data, self.workdir)


@dataclasses.dataclass(frozen=True)
class SweepFile:
    """A recipe with `sweep()` or `search(trial)` beside its `get_config()`.

    Attributes:
        recipe: what --config takes: the path, with ":SIZE" where there are sizes.
        title: the first line of its docstring.
        base: the variant that others are compared with (BASE); empty for the first one.
        metric: what a search improves (METRIC).
        variants: gives the overrides of every run; None where there is none.
        search: gives the overrides of a trial; None where there is none.
    """

    recipe: str
    title: str
    base: str
    metric: str
    variants: Callable[[], Iterable[Mapping[str, object]]] | None
    search: Callable[[object], Mapping[str, object]] | None

    @property
    def stem(self) -> str:
        return Path(self.recipe.split(":")[0]).stem


def read_file(recipe: str) -> SweepFile:
    """Raises `UserError` where the file is no sweep."""
    path, size = recipes.find(recipe), recipe.partition(":")[2]
    space = runpy.run_path(str(path))
    functions = {}
    for name in ("sweep", "search"):
        function = space.get(name)
        functions[name] = _with_location(function, name, size) if callable(function) else None
    if not any(functions.values()):
        raise UserError(f"{path} is no sweep: beside get_config() it must define sweep()")
    title = (space.get("__doc__") or path.stem).strip().splitlines()[0]
    base, metric = space.get("BASE", ""), space.get("METRIC", "eval/loss")
    return SweepFile(recipe, title, base, metric, functions["sweep"], functions["search"])


def _with_location(function: Callable, name: str, size: str) -> Callable:
    """`function`, called with the recipe's size if it has one; its errors name file and line."""

    def call(*arguments):
        try:
            result = function(*arguments, size) if size else function(*arguments)
            # A generator raises where it is read.
            return result if isinstance(result, Mapping) else list(result)
        except Exception as error:
            raise UserError(recipes.raised_in(error, name) or f"{name}: {error}") from error

    return call


def read_runs(file: SweepFile, recipe: ConfigDict, workdir: Path) -> list[Run]:
    """Every run of a sweep file, checked.

    Args:
        recipe: what `get_config` returned, with the command line's overrides.
        workdir: of the sweep.

    Raises:
        UserError: the file defines no sweep, there is no variant, two are the same or have the
            same name, or one sets what the schema does not take; every such message names the
            variant.
    """
    if file.variants is None:
        raise UserError(f"{file.recipe} is no sweep: it defines no sweep()")
    variants = file.variants()
    if not isinstance(variants, list) or not variants:
        raise UserError(f"{file.recipe}: sweep() gives no variant; it must yield at least one dict")
    for position, overrides in enumerate(variants, 1):
        if not isinstance(overrides, Mapping):
            raise UserError(
                f"{file.recipe}: variant {position} of sweep() is {overrides!r}; it must be a dict "
                "such as {'model.pos_att_type': ('c2p',), 'seed': 0}"
            )
    runs = [make_run(recipe, overrides, workdir) for overrides in variants]
    _check_names(runs)
    check_data_directories(runs)
    if file.base and file.base not in {run.variant for run in runs}:
        names = ", ".join(dict.fromkeys(run.variant for run in runs))
        raise UserError(f"{file.recipe}: BASE is {file.base!r}, but the variants are {names}")
    return runs


def make_run(
    recipe: ConfigDict, overrides: Mapping[str, object], workdir: Path, name: str = ""
) -> Run:
    """One run: `recipe` with `overrides`, of which "name" is the variant's name."""
    overrides = dict(overrides)
    variant = overrides.pop("name", name) or derived_name(overrides)
    if not isinstance(variant, str) or not _NAME.fullmatch(variant):
        raise UserError(
            f"variant {variant!r}: a name must be at most 100 letters, digits and ._=,+- "
            'after a letter or digit; give a shorter one with "name"'
        )
    try:
        config = schema.freeze(changed(recipe, overrides))
    except UserError as error:
        raise UserError(f"variant {variant}: {error}") from error
    run_directory = workdir / "runs" / f"{variant}_s{config.seed}"
    if not config.data.dir:
        shared = dataclasses.replace(config.data, dir=str(shared_data(config, workdir)))
        config = dataclasses.replace(config, data=shared)
    return Run(variant, overrides, config, run_directory)


def changed(recipe: ConfigDict, overrides: Mapping[str, object]) -> ConfigDict:
    """A copy of `recipe` with the fields of `overrides` (dotted names) set.

    Raises:
        UserError: there is no such field, or the value is of another type.
    """
    config = recipe.copy_and_resolve_references()
    fields = schema.flatten(Config())
    for field, value in overrides.items():
        if field not in fields:
            raise UserError(schema.no_such_field(str(field)))
        *sections, name = field.split(".")
        section = config
        for part in sections:
            section = section[part]
        try:
            section[name] = value
        except (TypeError, ValueError) as error:
            kind = type(fields[field]).__name__
            raise UserError(f"{field} is {value!r}; it must be of type {kind}") from error
    return config


def shared_data(config: Config, workdir: Path) -> Path:
    """The prepared data of all runs of a sweep that need the same."""
    settings = json.dumps(shaping_settings(config.data), sort_keys=True)
    return workdir / "data" / hashlib.sha256(settings.encode()).hexdigest()[:8]


def derived_name(overrides: Mapping[str, object]) -> str:
    """ "pos_att_type=c2p,learning_rate=0.001": every field but the seed, by its last word."""
    parts = [
        f"{field.split('.')[-1]}={value_text(value)}"
        for field, value in overrides.items()
        if field != SEED
    ]
    return ",".join(parts) or "base"


def value_text(value: object) -> str:
    if isinstance(value, (tuple, list)):
        text = "+".join(map(str, value)) or "none"
    else:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-")


def command_line(run: Run, file: SweepFile, set_fields: Iterable[str]) -> list[str]:
    """The arguments with which `deberta_jax.train` runs it.

    Args:
        set_fields: the fields that the sweep's own command line set.
    """
    fields = schema.flatten(run.config)
    names = dict.fromkeys([*set_fields, *run.overrides, "data.dir"])
    return [
        f"--config={file.recipe}",
        f"--workdir={run.workdir}",
        *(f"--config.{name}={fields[name]}" for name in names),
    ]


def _check_names(runs: list[Run]) -> None:
    seen: dict[str, Run] = {}
    first: dict[str, Run] = {}
    for run in runs:
        if run.name in seen:
            raise UserError(
                f"two variants have the same name, {run.variant} (seed {run.seed}); "
                'give each a name of its own with "name", or another seed'
            )
        seen[run.name] = run
        other = first.setdefault(run.variant, run)
        if differing := _apart_from_seed(other) ^ _apart_from_seed(run):
            fields = ", ".join(sorted({field for field, _ in differing}))
            raise UserError(
                f"two variants have the same name, {run.variant}, and differ in {fields}; "
                "repetitions of a variant differ in their seed only"
            )


def _apart_from_seed(run: Run) -> set:
    fields = schema.flatten(run.config)
    return {(name, repr(value)) for name, value in fields.items() if name != SEED}


def check_data_directories(runs: Sequence[Run]) -> None:
    """Raises `UserError` where one data.dir is to hold data of two kinds."""
    first: dict[Path, Run] = {}
    for run in runs:
        other = first.setdefault(run.data, run)
        ours, theirs = shaping_settings(run.config.data), shaping_settings(other.config.data)
        differing = [f"data.{name}" for name in ours if ours[name] != theirs[name]]
        if differing:
            raise UserError(
                f"variants {other.variant} and {run.variant} differ in {', '.join(differing)}, but "
                f"share data.dir {run.data}; leave data.dir empty, and each has its own"
            )
