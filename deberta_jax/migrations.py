"""Files of older schemas, brought to today's: `config.json` and the data's `metadata.json`.

Version 1 is what carries no version. A new field needs nothing here: a file that lacks it gets its
default. A renamed, moved or removed one needs a function, and a directory in `tests/formats`.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from deberta_jax.errors import UserError

Values = dict[str, Any]
Migration = Callable[[Values], Values]
# What brings a config of each version to the next one.
CONFIG: dict[int, Migration] = {}
CONFIG_VERSION = 2


def _register(version: int) -> Callable[[Migration], Migration]:
    def register(function: Migration) -> Migration:
        CONFIG[version] = function
        return function

    return register


@_register(1)
def _compute_apart(config: Values) -> Values:
    """`model` lost what is no architecture to `compute`."""
    moved = ("dtype", "remat", "attention", "unroll")
    model = config.get("model", {})
    kept = {name: value for name, value in model.items() if name not in moved}
    compute = {name: model[name] for name in moved if name in model}
    if isinstance(stated := config.get("compute", {}), dict):  # else it is refused as it is
        stated = stated | compute
    return config | {"model": kept, "compute": stated}


def migrate(config: Any, source: str) -> Values:
    """A config of any version as one of today's, fields that it lacks left out.

    Args:
        config: what a file holds.
        source: the file, for messages.

    Raises:
        UserError: it holds no config, or one of a newer version.
    """
    if not isinstance(config, dict):
        raise UserError(f"{source} holds no config: it is a {type(config).__name__}")
    version = config.get("version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(f"{source}: version is {version!r}; it must be a whole number from 1")
    if version > CONFIG_VERSION:
        raise UserError(
            f"{source} is of schema version {version}, this program reads up to {CONFIG_VERSION}: "
            "install a newer deberta_jax"
        )
    config = {name: value for name, value in config.items() if name != "version"}
    for older in range(version, CONFIG_VERSION):
        if not isinstance(config.get("model", {}), dict):
            raise UserError(f"{source}: model must be a section of fields")
        config = CONFIG[older](config)
    return config


def complete(
    values: Mapping[str, Any], defaults: Mapping[str, Any], source: str, prefix: str = ""
) -> Values:
    """`values` with the defaults of the fields that they lack; lists become tuples.

    Raises:
        UserError: a field that there is not, or a value of another type than its default.
    """
    completed = dict(defaults)
    for name, value in values.items():
        field = f"{prefix}{name}"
        if name not in defaults:
            nearest = difflib.get_close_matches(name, list(defaults), 1, 0.3)
            hint = f"; the nearest is {prefix}{nearest[0]}" if nearest else ""
            raise UserError(f"{source} has a field {field!r} that there is not{hint}")
        default = defaults[name]
        if isinstance(default, dict):
            if not isinstance(value, dict):
                raise UserError(f"{source}: {field} must be a section of fields")
            value = complete(value, default, source, f"{field}.")
        elif not _fits(value, default):
            raise UserError(
                f"{source}: {field} is {value!r}; it must be of type {type(default).__name__}"
            )
        completed[name] = tuple(value) if isinstance(value, list) else value
    return completed


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, (tuple, list)):
        like = default[0] if default else ""  # a list without a default is of texts
        return isinstance(value, list) and all(_fits(item, like) for item in value)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, type(default)) and not isinstance(value, bool)
