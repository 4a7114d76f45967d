"""Recipes: those that travel with the package, by name, and a user's own, by path.

A name is the path under `configs/` without `.py`, such as `quickstart` or `finetune/sst2`. As with
ml_collections, ":ARGUMENT" behind a name or path is what `get_config` is called with.
"""

import difflib
import runpy
from pathlib import Path

from ml_collections import ConfigDict

from deberta_jax import configs
from deberta_jax.errors import UserError

FOLDER = Path(*configs.__path__)


def names() -> list[str]:
    """The names of the recipes that travel with the package."""
    return sorted(
        path.relative_to(FOLDER).with_suffix("").as_posix()
        for path in FOLDER.rglob("*.py")
        if "def get_config(" in path.read_text(encoding="utf-8")
    )


def find(text: str) -> Path:
    """The file of a recipe.

    Args:
        text: a path or a name, with or without ":ARGUMENT". A file at that path wins over a name.

    Raises:
        UserError: there is no such file and no such name.
    """
    if ":" in text and Path(text).expanduser().is_file():
        raise UserError(f"{text}: what follows a colon is a recipe's argument; rename the file")
    name, _, _ = text.partition(":")
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = names()
    if name in known:
        return FOLDER / f"{name}.py"
    # `configs/quickstart.py` outside the checkout.
    bare = name.removeprefix("configs/").removesuffix(".py")
    if bare in known:
        raise UserError(f"{text}: there is no such file; the recipe has the name {bare}")
    if name.endswith(".py"):
        raise UserError(f"{text}: there is no such file")
    nearest = ", ".join(difflib.get_close_matches(name, known, 3, cutoff=0))
    raise UserError(f"{text}: there is no such recipe or file; the nearest recipes are {nearest}")


def load(text: str, argument: str | None = None) -> ConfigDict:
    """The locked config of a recipe; `recipes.load("quickstart")`.

    Args:
        text: as for `find`.
        argument: what `get_config` is called with, unless `text` has it behind a colon.

    Raises:
        UserError: there is no such recipe. What the recipe raises passes through.
    """
    path = find(text)
    _, colon, own = text.partition(":")
    arguments = [own] if colon else [argument] if argument is not None else []
    return runpy.run_path(str(path))["get_config"](*arguments).lock()


def raised_in(error: BaseException | None, function: str) -> str | None:
    """ "file:line: message" of an exception that left `function` of a recipe, else None.

    ml_collections and absl wrap what a recipe raises; the cause is followed down to it.
    """
    while error:
        position, trace = None, error.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_name == function:
                position = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
            trace = trace.tb_next
        if position:
            return f"{position}: {' '.join(str(error).split()) or type(error).__name__}"
        error = error.__cause__ or error.__context__
    return None
