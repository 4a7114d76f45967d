"""What a directory holds: a run, a checkpoint, a tokenizer, data; and which verb takes which.

Every verb asks here before it reads or writes a directory that a user named.
"""

import enum
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from deberta_jax import objectives, storage
from deberta_jax.data.metadata import METADATA_FILE
from deberta_jax.data.nested import transformer_folder
from deberta_jax.errors import UserError
from deberta_jax.evaluation import finetuning_scores
from deberta_jax.interop import files, orbax_params
from deberta_jax.interop.rtd_files import holds_pair, holds_step_files
from deberta_jax.interop.tokenizer_files import has_vocabulary
from deberta_jax.training import checkpoints, digests

CONFIG = "config.json"
_SEED = re.compile(r"seed_\d+")
_STEP = re.compile(r"checkpoint-(\d+)")
# Names that a message lists, at most.
_LISTED = 3


class Kind(enum.Enum):
    """What there may be at a path, as a message calls it where a verb asks for it."""

    MISSING = "a new directory"
    EMPTY = "an empty directory"
    FILE = "a file"
    SPECIAL = "a socket, a pipe or a device"
    RUN = "a pre-training run"
    FINETUNED = "a fine-tuned run"
    STARTED = "a run without a checkpoint"
    SEEDS = "fine-tuned runs by seed"
    TASKS = "a directory of fine-tuned tasks"
    SWEEP = "a sweep"
    STEPS = "the checkpoints of a run"
    CHECKPOINT = "a checkpoint"
    PAIR = "the two models of replaced-token detection"
    STEP_FILES = "files of Microsoft's training"
    WORKDIR = "a workdir with prepared data"
    DATA = "prepared data"
    TOKENIZER = "a tokenizer"
    OTHER = "a directory of other files"


class Found(NamedTuple):
    """What was recognised at a path.

    Attributes:
        path: where.
        kind: what.
        text: the same for a person, with names.
        instead: the path that may rather be meant: of a file its directory, of a run's checkpoints
            the run, of a group one of it, of a fine-tuned run what it began with.
    """

    path: Path
    kind: Kind
    text: str
    instead: Path | None = None


class Use(NamedTuple):
    """A flag or field that names a directory.

    Attributes:
        flag: as the user wrote it.
        verb: what wants it, the subject of a message.
        takes: the kinds that suit.
    """

    flag: str
    verb: str
    takes: frozenset[Kind]


def _use(flag: str, verb: str, *takes: Kind) -> Use:
    return Use(flag, verb, frozenset(takes))


_NEW = (Kind.MISSING, Kind.EMPTY)
# What is read.
READS = {
    "evaluate": _use(
        "--workdir", "evaluate", Kind.RUN, Kind.FINETUNED, Kind.SEEDS, Kind.TASKS
    ),
    "score": _use("--checkpoint", "score", Kind.RUN, Kind.CHECKPOINT),
    "export": _use("--workdir", "export", Kind.RUN, Kind.FINETUNED),
    "export --onnx": _use(
        "--workdir", "export --onnx", Kind.RUN, Kind.FINETUNED, Kind.CHECKPOINT
    ),
    "convert": _use("--from", "convert", Kind.RUN, Kind.FINETUNED, Kind.CHECKPOINT),
    "finetune": _use("--init", "finetune --init", Kind.RUN, Kind.FINETUNED, Kind.CHECKPOINT),
    "train.init": _use("train.init", "train.init", Kind.RUN, Kind.CHECKPOINT),
    "train.init of rtd": _use(
        "train.init", "train.init with objective='rtd'",
        Kind.RUN, Kind.CHECKPOINT, Kind.PAIR, Kind.STEP_FILES, Kind.FILE,
    ),
    "plot attention": _use(
        "--checkpoint", "plot", Kind.RUN, Kind.FINETUNED, Kind.CHECKPOINT
    ),
    "plot profiles": _use(
        "--checkpoint", "plot", Kind.RUN, Kind.FINETUNED, Kind.CHECKPOINT
    ),
    "plot curves": _use(
        "--workdir", "plot curves", Kind.RUN, Kind.FINETUNED, Kind.STARTED
    ),
    "plot norms": _use("--workdir", "plot norms", Kind.RUN, Kind.FINETUNED, Kind.STARTED),
    "load_pretrained": _use(
        "path", "load_pretrained", Kind.RUN, Kind.FINETUNED, Kind.CHECKPOINT
    ),
    "api.evaluate": _use("workdir", "evaluate", Kind.RUN),
    "data.dir": _use("data.dir", "train", Kind.DATA),
}  # fmt: skip
# What is written.
WRITES = {
    "train": _use(
        "--workdir", "train",
        *_NEW, Kind.WORKDIR, Kind.STARTED, Kind.RUN, Kind.TOKENIZER, Kind.OTHER,
    ),
    "finetune --workdir": _use(
        "--workdir", "finetune", *_NEW, Kind.SEEDS, Kind.TASKS, Kind.TOKENIZER, Kind.OTHER
    ),
    "prepare": _use("data.dir", "prepare", *_NEW, Kind.DATA, Kind.TOKENIZER, Kind.OTHER),
    "export --out": _use(
        "--out", "export --out", *_NEW, Kind.CHECKPOINT, Kind.PAIR, Kind.TOKENIZER, Kind.OTHER
    ),
    "convert --to": _use("--to", "convert", *_NEW),
    "save_pretrained": _use(
        "path", "save_pretrained",
        *_NEW, Kind.CHECKPOINT, Kind.PAIR, Kind.TOKENIZER, Kind.OTHER,
    ),
}  # fmt: skip


def require(path: str | os.PathLike, use: str) -> Found:
    """What is at `path`, which suits `use`, a key of `READS`.

    Raises:
        UserError: it does not suit: what it is, and what takes it.
    """
    found = recognise(path)
    if found.kind not in READS[use].takes:
        raise UserError(_refusal(found, READS[use]))
    return found


def require_writable(path: str | os.PathLike, use: str) -> Found:
    """What is at `path`, which `use`, a key of `WRITES`, may write.

    Raises:
        UserError: something else is there, or the system will not let it be written.
    """
    found = recognise(path)
    wanted = WRITES[use]
    if found.kind not in wanted.takes:
        raise UserError(_refusal(found, wanted))
    check_writable(found.path, wanted.flag)
    return found


def check_writable(path: Path, flag: str) -> None:
    """Raises `UserError` where the nearest directory above that exists cannot be written."""
    if storage.is_url(path):  # writing to a bucket tells
        return
    nearest = storage.nearest_existing(path)
    if not nearest.is_dir():
        raise UserError(
            f"{flag}={path} cannot be written: {nearest} is {_special(nearest) or 'a file'}, "
            "not a directory"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(
            f"{flag}={path} cannot be written: {nearest} is read-only here; name a directory that "
            "can be written"
        )


def check_file(path: Path, flag: str) -> None:
    """Raises `UserError` where a file cannot be written at `path`."""
    if path.is_dir():
        raise UserError(f"{flag}={path} is a directory; name a file in it")
    if special := _special(path):
        raise UserError(f"{flag}={path} is {special}; name a file")
    if not storage.is_url(path) and not path.parent.is_dir():
        raise UserError(f"{flag}={path}: there is no directory {path.parent}")
    check_writable(path.parent, flag)


def recognise(path: str | os.PathLike) -> Found:
    """What is at `path`. No file is read but small JSON."""
    path = _path(path)
    if special := _special(path):
        return Found(path, Kind.SPECIAL, special)
    if not path.exists():
        return Found(path, Kind.MISSING, "not there")
    if path.is_file():
        return Found(path, Kind.FILE, "a file", path.parent)
    names = [child.name for child in storage.children(path)]
    if not names:
        return Found(path, Kind.EMPTY, "empty")
    for recogniser in _RECOGNISERS:
        if found := recogniser(path, names):
            return found
    text = f"a directory of other files ({_listed(names)})"
    return Found(path, Kind.OTHER, text, _checkpoint_inside(path, names))


def _path(path: str | os.PathLike) -> Path:
    """A local path, or one of a bucket, which has the same calls."""
    return storage.user_path(path) if storage.is_url(path) else Path(path).expanduser()


def _special(path: Path) -> str:
    """What a path is that is neither a file nor a directory; "" for those and for nothing."""
    if storage.is_url(path):
        return ""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    kinds = {stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a pipe"}
    plain = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    return "" if plain else kinds.get(stat.S_IFMT(mode), "a device")


def _run(path: Path, names: list[str]) -> Found | None:
    config = _own_config(path)
    steps = _whole_steps(path / checkpoints.FOLDER)
    if config is None:
        if not steps:
            return None
        return Found(path, Kind.STARTED, f"a run whose {CONFIG} is missing")
    if not steps:
        return Found(path, Kind.STARTED, "a run without a checkpoint")
    if _is_finetuning(config):
        done = (path / finetuning_scores.FILE).is_file()
        text = "a fine-tuned run" if done else "a fine-tuned run that has not finished"
        begun = config.get("train", {}).get("init")
        return Found(
            path,
            Kind.FINETUNED,
            f"{text} (step {max(steps)})",
            storage.as_path(begun) if begun else None,
        )
    return Found(path, Kind.RUN, f"a pre-training run (step {max(steps)})")


def _seeds(path: Path, names: list[str]) -> Found | None:
    seeds = [name for name in names if _SEED.fullmatch(name)]
    seeds = [name for name in seeds if _own_config(path / name) is not None]
    if not seeds:
        return None
    seeds.sort(key=lambda name: int(name.removeprefix("seed_")))
    return Found(path, Kind.SEEDS, f"fine-tuned runs ({_listed(seeds)})", path / seeds[0])


def _step_or_steps(path: Path, names: list[str]) -> Found | None:
    """The folder of a run's checkpoints, or one of them."""
    if path.name == checkpoints.FOLDER and _whole_steps(path):
        return Found(path, Kind.STEPS, "the checkpoints of a run", path.parent)
    if {"state", "input", "clock"} <= set(names):
        return Found(path, Kind.STEPS, "one checkpoint of a run", path.absolute().parents[1])
    return None


def _checkpoint(path: Path, names: list[str]) -> Found | None:
    if (own := transformer_folder(path)) != path and files.holds_weights(own):
        return Found(path, Kind.CHECKPOINT, "a checkpoint in sentence-transformers' layout")
    if orbax_params.is_orbax(path):
        return Found(path, Kind.CHECKPOINT, "a checkpoint in Orbax's layout")
    if not files.holds_weights(path):
        return None
    whose = "transformers'" if any(name.endswith(".safetensors") for name in names) else "a torch"
    return Found(path, Kind.CHECKPOINT, f"a checkpoint in {whose} layout")


def _pair(path: Path, names: list[str]) -> Found | None:
    if holds_pair(path):
        instead = path / "discriminator" if "discriminator" in names else None
        return Found(path, Kind.PAIR, Kind.PAIR.value, instead)
    if holds_step_files(path):
        steps = [name for name in names if name.startswith("pytorch.model-")]
        return Found(path, Kind.STEP_FILES, f"files of Microsoft's training ({_listed(steps)})")
    return None


def _data(path: Path, names: list[str]) -> Found | None:
    if not isinstance(_json(path / METADATA_FILE), dict) or "tokenizer" not in names:
        return None
    run = path.absolute().parent
    return Found(path, Kind.DATA, "prepared data", run if _own_config(run) else None)


def _workdir(path: Path, names: list[str]) -> Found | None:
    if (path / "data" / METADATA_FILE).is_file():
        return Found(path, Kind.WORKDIR, "a workdir whose data is prepared, without a run")
    return None


def _tokenizer(path: Path, names: list[str]) -> Found | None:
    return Found(path, Kind.TOKENIZER, "a tokenizer") if has_vocabulary(path) else None


def _sweep(path: Path, names: list[str]) -> Found | None:
    children = [path / "runs" / child.name for child in storage.children(path / "runs")]
    runs = [child for child in children if _own_config(child) is not None]
    if not runs:
        return None
    return Found(path, Kind.SWEEP, f"a sweep of {len(runs)} runs", runs[0])


def _tasks(path: Path, names: list[str]) -> Found | None:
    tasks = [str(values["task"]) for values in finetuning_scores.read_tasks(path)]
    if not tasks:
        return None
    return Found(path, Kind.TASKS, f"results of fine-tuning ({_listed(tasks)})")


def _checkpoint_inside(path: Path, names: list[str]) -> Path | None:
    """The last checkpoint in a folder of the Hub's cache, or of the Trainer of `transformers`."""
    snapshots = [path / "snapshots" / child.name for child in storage.children(path / "snapshots")]
    steps = {int(match[1]): path / match[0] for match in map(_STEP.fullmatch, names) if match}
    inside = [*snapshots, *(steps[step] for step in sorted(steps))]
    return inside[-1] if inside else None


# The first that recognises a directory decides.
_RECOGNISERS: tuple[Callable[[Path, list[str]], Found | None], ...] = (
    _run, _step_or_steps, _seeds, _pair, _checkpoint, _data, _workdir, _tokenizer, _sweep, _tasks,
)  # fmt: skip


def _own_config(path: Path) -> dict[str, Any] | None:
    """The `config.json` of a run, of any schema; None where it is another program's or none."""
    values = _json(path / CONFIG)
    own = isinstance(values, dict) and isinstance(values.get("model"), dict)
    return values if own and "model_type" not in values else None


def _json(path: Path) -> Any:
    """What a JSON file holds; None where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _whole_steps(folder: Path) -> list[int]:
    """The steps whose checkpoints were written to their end."""
    steps = (path for path in storage.children(folder) if path.name.isdecimal())
    return [int(path.name) for path in steps if (path / digests.COMMIT).is_file()]


def _is_finetuning(config: dict[str, Any]) -> bool:
    name = config.get("objective", "mlm")
    try:
        return not objectives.kind(str(name)).learns_from_text
    except UserError:  # of a package that is not here: opening the run says so
        return False


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return f"{shown}, ..." if len(names) > _LISTED else shown


def _refusal(found: Found, use: Use) -> str:
    """The line that says what is there, and what to do."""
    wanted = _either([kind.value for kind in Kind if kind in use.takes])
    what = f"{use.flag}={found.path}"
    if found.kind is Kind.MISSING:
        return f"{what} is no directory: nothing is there; it must be {wanted}"
    if use.takes == frozenset(_NEW):
        full = "not empty: it is " * found.path.is_dir()
        return f"{what} is {full}{found.text}; {use.verb} takes {wanted}"
    advice = (_advice_to_write if use in WRITES.values() else _advice_to_read)(found, use)
    parts = f"{what} is {found.text}", f"{use.verb} takes {wanted}", advice
    return "; ".join(filter(None, parts))


def _advice_to_write(found: Found, use: Use) -> str:
    if use.verb == "train" and found.kind is Kind.CHECKPOINT:
        return f"train.init={found.path} begins with it"
    return "name another directory"


def _advice_to_read(found: Found, use: Use) -> str:
    path, kind = found.path, found.kind
    if found.instead is not None and recognise(found.instead).kind in use.takes:
        return f"name {found.instead}"
    if kind is Kind.DATA:
        return f"train reads it as data.dir={path}"
    if kind is Kind.TOKENIZER:
        return f"prepare reads it as data.tokenizer={path}"
    if kind is Kind.WORKDIR:
        return "train first"
    if kind is Kind.STARTED:
        return "the command that started it goes on"
    if kind in (Kind.EMPTY, Kind.OTHER) and Kind.CHECKPOINT in use.takes:
        return "a checkpoint has config.json and model.safetensors, pytorch_model.bin or tensors/"
    if kind is Kind.CHECKPOINT and use == READS["export"]:
        return "it is a checkpoint already: --onnx makes a graph of it, convert another layout"
    if kind is Kind.CHECKPOINT and use.verb in ("plot curves", "plot norms"):
        return f"a checkpoint has no {use.verb.removeprefix('plot ')}, only the run that made it"
    readers = list(dict.fromkeys(one.verb for one in READS.values() if kind in one.takes))
    return f"{_either(readers)} takes it" if readers and kind is not Kind.FILE else ""


def _either(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
