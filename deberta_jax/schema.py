"""The one schema of a run: every field, its comment and its default. Nothing is hidden elsewhere.

A recipe in `configs/` starts from `default()`, changes fields, and returns the locked result:
a misspelt field or a value of the wrong type is an error that names the nearest field.
`python -m deberta_jax.config --config=FILE` lists every field with its comment and value.
"""

import ast
import dataclasses
import difflib
import inspect
from pathlib import Path

from ml_collections import ConfigDict

from deberta_jax import migrations, storage
from deberta_jax.data.config import DataConfig, MaskingConfig
from deberta_jax.data.tasks.config import TaskConfig
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.objectives.config import FinetuneConfig, RtdConfig
from deberta_jax.parallel.mesh import MeshConfig
from deberta_jax.training.config import GuardConfig, OptimizerConfig, ProfileConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    # Seed of everything random: held-out split, shuffle, masking, initial weights, dropout.
    seed: int = 0
    # What is learned: masked tokens ("mlm"), each token from those before it ("clm"), both
    # ("mlm_clm"), which tokens a generator replaced ("rtd"); or, fine-tuning, "classification",
    # "multi_label" (several classes of one text, or none), "regression", "multiple_choice", "span"
    # (extractive question answering), "token_classification".
    objective: str = "mlm"
    # The architecture: what a checkpoint is.
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    # How it is computed.
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    # From text to packed sequences.
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    # Which tokens become targets.
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    # How long, how much at a time, what is written when.
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    # Replaced-token detection: the generator, the sharing of embeddings.
    rtd: RtdConfig = dataclasses.field(default_factory=RtdConfig)
    # AdamW and its schedule.
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    # Steps that are skipped because their numbers are not finite, or spikes.
    guard: GuardConfig = dataclasses.field(default_factory=GuardConfig)
    # Fine-tuning: the examples, their columns, their scores.
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    # Fine-tuning: the head's dropout, and SiFT.
    finetune: FinetuneConfig = dataclasses.field(default_factory=FinetuneConfig)
    # How the devices are arranged.
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    # Which steps are traced.
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)


def default() -> ConfigDict:
    """The whole schema with its defaults, locked and typed; recipes change fields of it."""
    return ConfigDict(dataclasses.asdict(Config()), convert_dict=True).lock()


def freeze(config: ConfigDict) -> Config:
    """The typed, checked, immutable form that the code works with."""
    return _build(Config, config.to_dict())


def _build(kind, values):
    built = {}
    for field in dataclasses.fields(kind):
        value = values[field.name]
        if isinstance(value, dict):
            value = _build(field.default_factory, value)
        elif isinstance(value, list):
            value = tuple(value)
        built[field.name] = value
    return kind(**built)


def flatten(config: Config) -> dict[str, object]:
    """Every field by its dotted name."""

    def walk(value, prefix):
        for name, item in value.items():
            if isinstance(item, dict):
                yield from walk(item, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", item

    return dict(walk(dataclasses.asdict(config), ""))


def no_such_field(name: str) -> str:
    """What to say of a field that the schema does not have."""
    names = list(flatten(Config()))
    near = difflib.get_close_matches(name, names, 1, 0.3)
    nearest = f"; the nearest is {near[0]!r}" if near else ""
    where = f"of {len(names)}; python -m deberta_jax.config lists them"
    return f"config has no field {name!r}{nearest} ({where})"


def differences(old: Config, new: Config, section: str = "") -> list[str]:
    """ "field: old -> new" for every field under `section` that differs."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before[name]!r} -> {after[name]!r}"
        for name in before
        if name.startswith(section) and before[name] != after[name]
    ]


def save(config: Config, path: Path) -> None:
    """Writes `path` whole or not at all."""
    storage.write_json(path, {"version": migrations.CONFIG_VERSION} | dataclasses.asdict(config))


def load(path: Path) -> Config:
    """The config that a workdir was started with, whichever schema it was written by.

    Raises:
        UserError: the file cannot be read, is of a newer version, or has a field or a value that
            there is not.
    """
    values = migrations.migrate(storage.read_json(path), str(path))
    return _build(Config, migrations.complete(values, dataclasses.asdict(Config()), str(path)))


def comments(kind=Config, prefix: str = "") -> dict[str, str]:
    """The comment above each field of the schema, by dotted name."""
    lines = inspect.getsource(kind).splitlines()
    by_field: dict[str, str] = {}
    (definition,) = ast.parse("\n".join(lines)).body
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        above: list[str] = []
        for line in reversed(lines[: node.lineno - 1]):
            if not line.strip().startswith("#"):
                break
            above.insert(0, line.strip().lstrip("# "))
        by_field[prefix + node.target.id] = " ".join(above)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default_factory):
            by_field |= comments(field.default_factory, f"{prefix}{field.name}.")
    return by_field
