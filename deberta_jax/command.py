"""What every verb shares: flags, the config file with its overrides, one-line errors."""

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from deberta_jax import recipes, storage
from deberta_jax.errors import UserError, reason, system_error_in
from deberta_jax.parallel import absent_tpu, host_memory
from deberta_jax.parallel import processes as distributed
from deberta_jax.schema import Config, flatten, freeze, no_such_field
from deberta_jax.training import signals

STOPPED = signals.STOPPED


def run(
    verb: Callable,
    workdir: bool = True,
    needs_config: bool = True,
    processes: bool = False,
    sweep: bool = False,
) -> None:
    """Parses the command line, calls `verb(flags)`, and exits; a `UserError` is one line.

    Args:
        verb: the verb's main function; it gets absl's parsed flags.
        workdir: whether there is a --workdir flag, which is then required.
        needs_config: whether there is a --config (with --config.a.b=c overrides).
        processes: whether several processes may run the verb as one (--distributed).
        sweep: whether that recipe is a sweep file, named by --sweep.
    """
    _define_flags(workdir, needs_config, processes, sweep)

    def parse(arguments):
        parsed = _one_line(lambda: _parse(arguments))
        if sweep and parsed.config is None:
            _fail("--sweep is missing; it names a sweep, such as sweeps/ablation:tiny")
        if needs_config and parsed.config is None:
            _fail("--config is missing; it names a recipe, such as quickstart")
        if workdir and not parsed.workdir:
            _fail("--workdir is missing; it names the directory of the run")
        # Orbax and TFDS tell every step of theirs, and Orbax logs what its threads raise before it
        # raises it again; --verbosity=0 shows all.
        if parsed["verbosity"].using_default_value:
            parsed.verbosity = logging.ERROR
            logging.get_absl_handler().addFilter(lambda record: not record.exc_info)
        return [sys.argv[0]]

    def main(_):
        host_memory.keep()  # before JAX starts its threads
        absent_tpu.keep_quiet()
        if processes:
            settings = flags.FLAGS.config.train
            distributed.initialize(
                flags.FLAGS.distributed,
                settings.heartbeat_seconds,
                settings.initialization_timeout,
            )
        signals.end_when_told()
        try:
            with distributed.ending_at_once():
                verb(flags.FLAGS)
        except SystemExit as end:
            if end.code == STOPPED:
                distributed.leave(STOPPED)
            raise

    app.run(lambda arguments: _one_line(lambda: main(arguments)), flags_parser=parse)


def _define_flags(workdir: bool, needs_config: bool, processes: bool, sweep: bool) -> None:
    values = flags.FLAGS
    others = set(values)
    if processes:
        flags.DEFINE_string(
            "distributed", "off", f"The job's other processes: {distributed.FORMS}."
        )
    if needs_config:
        config_flags.DEFINE_config_file(
            "config", None, "A recipe: its name or its file. --config.a.b=c overrides a field."
        )
        values["config"].parser = _RecipeParser("sweep" if sweep else "config")
    if sweep:
        flags.DEFINE_alias("sweep", "config")
    if workdir:
        flags.DEFINE_string("workdir", None, "Directory of the run.")
    # absl's --help lists the flags of the module that is run; these are among them.
    for name in sorted(set(values) - others):
        values.register_key_flag_for_module(sys.argv[0], values[name])


class _RecipeParser(config_flags.ConfigFileFlagParser):
    """Reads recipes by name too; errors begin with the flag, which is its `name`."""

    def parse(self, path: str) -> ConfigDict:
        try:
            file = recipes.find(path)
        except UserError as error:
            raise UserError(f"--{self.name}={error}") from None
        _, colon, argument = path.partition(":")
        try:
            return super().parse(f"{file}{colon}{argument}")
        except TypeError as error:
            if "get_config() takes 0 " in str(error):
                raise UserError(f"--{self.name}={path}: the recipe takes no argument") from error
            raise


def config(parsed) -> Config:
    """The checked config that the command line gave."""
    return freeze(parsed.config)


def workdir(parsed) -> Path:
    return storage.run_path(parsed.workdir)


def _parse(arguments):
    try:
        rest = flags.FLAGS(arguments, known_only=False)
        if "config" in flags.FLAGS:  # an unreadable recipe is silent until it is looked at
            getattr(flags.FLAGS["config"].value, "is_locked", None)
    except UserError:
        raise
    except Exception as error:  # absl and ml_collections raise many kinds for one mistake
        raise UserError(_explain(error, arguments)) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no flag; overrides look like --config.train.batch_size=64")
    return flags.FLAGS


def _explain(error: Exception, arguments) -> str:
    """One line for a recipe or an override that cannot be used, with the nearest field."""
    if raised := recipes.raised_in(error, "get_config"):
        return raised
    fields = flatten(Config())
    matches = (re.match(r"--?config\.([^=]+)(?:=(.*))?$", word) for word in arguments[1:])
    overrides = [match for match in matches if match]
    for override in overrides:
        if override[1] not in fields:
            return no_such_field(override[1])
    if isinstance(error, config_flags.FlagOrderError):
        return f"{overrides[0][0]} comes before --config; overrides have to follow the recipe"
    for override in overrides:
        if override[1] in str(error):
            return f"{override[0]}: it must be of type {type(fields[override[1]]).__name__}"
    return reason(error)


def _one_line(function):
    """Calls the function. What the user can mend, errors of the system among it, is one line."""
    try:
        return function()
    except UserError as error:
        _fail(str(error), error.status)
    except BrokenPipeError:  # the reader of the output is gone, as `head` is
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        mended = system_error_in(error, _written())
        if mended is None:
            raise
        logging.info("where that came from:", exc_info=error)
        _fail(str(mended), mended.status)


def _written() -> str:
    """What the verb writes, for errors of the system that name no path."""
    values = flags.FLAGS
    named = (values[name].value for name in ("out", "to", "workdir") if name in values)
    return next((value for value in named if value and isinstance(value, str)), "")


def _fail(message: str, status: int = UserError.status):
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
