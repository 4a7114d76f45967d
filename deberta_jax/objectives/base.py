"""The protocol of an objective: the only thing that knows what a batch means."""

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from deberta_jax.data.dataset import PreparedData
from deberta_jax.data.input import MakeBatch
from deberta_jax.data.tokenizer import Tokenizer
from deberta_jax.errors import UserError
from deberta_jax.interop import pretrained
from deberta_jax.interop.continued import continued
from deberta_jax.interop.names import NEW_PARTS, POSITION_TABLE
from deberta_jax.interop.released import Released
from deberta_jax.interop.rtd_pair import Pair
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.depth import depths
from deberta_jax.model.heads import Deberta
from deberta_jax.training.config import OptimizerConfig
from deberta_jax.training.trainable import Batch, Scalars, Stage

Params = Any
Shapes = dict[str, jax.ShapeDtypeStruct]
_TABLE_PART = "position_embeddings"


@runtime_checkable
class InitialCheckpoint(Protocol):
    """What `train.init` names, read when asked for."""

    @property
    def path(self) -> Path:
        """Where it is."""

    @property
    def new_parts(self) -> Sequence[str]:
        """Parts that are made new although it has them (`train.new_parts`)."""

    @property
    def seed(self) -> int:
        """Of new parts."""

    def single(self) -> Released:
        """Its one model, or a run's own."""

    def pair(self) -> Pair:
        """Its discriminator, and its generator where it has one."""


def check_architecture(
    source: str, stated: ModelConfig, wanted: ModelConfig, but: Sequence[str] = ()
) -> None:
    """Raises `UserError` unless both are one architecture, but for some fields."""
    fields = wanted.architecture()
    differing = [
        f"{field}: {value!r} there, {fields[field]!r} here"
        for field, value in stated.architecture().items()
        if value != fields[field] and field not in but
    ]
    if differing:
        raise UserError(f"{source} is of another model ({'; '.join(differing)})")


class Objective(abc.ABC):
    """What is learned: its batch, its models, its parameter groups, its losses.

    The loop, evaluation, export and `compile` drive any objective through this class and know
    nothing else of it. `weights` and `sums` are flat dicts of float32 scalars that add up over the
    parts of a batch and over batches, and `summarize` turns them into metrics; so a loss means the
    same for a microbatch, a batch and a whole evaluation.

    Attributes:
        config: the architecture of the (first) model.
        models: the models by name, without dropout, as a checkpoint of each is loaded.
        exported: names of the models that an export writes. The first is the run's own: it is what
            `load_pretrained(workdir)` returns.
        groups: names of the parameters' optimizer groups.
    """

    # Packed text, or a task's labelled examples, which come with batches of their own.
    learns_from_text: ClassVar[bool] = True

    config: ModelConfig
    models: dict[str, Deberta]
    exported: tuple[str, ...] = ("model",)
    groups: tuple[str, ...] = ("default",)

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: Any, unigram_counts: np.ndarray | None = None) -> "Objective":
        """The objective of a run.

        Args:
            config: a `deberta_jax.schema.Config`.
            unigram_counts: int64 [V], how often each ordinary token occurs in the training text;
                None where there is no text, or no need for a baseline.
        """

    @abc.abstractmethod
    def batch_shapes(self, sequence_length: int, batch_size: int) -> Shapes:
        """Shape and type of every array of a global batch."""

    @abc.abstractmethod
    def batch_maker(self, tokenizer: Tokenizer, seed: int) -> MakeBatch:
        """How rows of packed text become a batch.

        The rows are `input_ids`, `segment_ids`, `position_ids`, int32 [B, L]. A batch must depend
        on its arguments alone, so that a resumed run sees the same one.
        """

    @abc.abstractmethod
    def init(self, rng: Key[Array, ""]) -> Params:
        """Parameters of all models, float32, boxed with their logical axes."""

    @abc.abstractmethod
    def weights(self, batch: Batch) -> Scalars:
        """What the sums of this batch are divided by."""

    @abc.abstractmethod
    def loss(
        self,
        params: Params,
        batch: Batch,
        weights: Scalars,
        rng: Key[Array, ""] | None,
        train: bool,
    ) -> tuple[Float[Array, ""], Scalars]:
        """(loss, sums) of these rows; the loss is divided by `weights`.

        Args:
            params: as `init` makes them, unboxed.
            batch: some rows of a global batch.
            weights: those of the whole global batch.
            rng: key of whatever is drawn. None only where nothing is: not in training.
            train: whether dropout is on.
        """

    @abc.abstractmethod
    def summarize(self, sums: Scalars, weights: Scalars) -> Scalars:
        """Metrics by name, without a prefix. "loss" is what training minimises."""

    def observe(self, params: Params) -> Scalars:
        """Metrics of the parameters alone, measured when held-out data are."""
        del params
        return {}

    @abc.abstractmethod
    def flops_per_token(self, sequence_length: int) -> float:
        """Model FLOPs of one token of a training step, forward and backward."""

    def params_of(self, params: Params, name: str) -> Params:
        """The parameters of the model called `name`: all of them, unless there are several."""
        del name
        return params

    def initial_params(self, checkpoint: InitialCheckpoint) -> Params:
        """Parameters to begin with, from what `train.init` names; new parts are printed.

        Raises:
            UserError: it is of another architecture, listing every field that differs; or tensors
                are missing, extra or misshapen.
        """
        source, single = f"train.init={checkpoint.path}", checkpoint.single()
        model = self.models[self.exported[0]]
        # Without a table in its file, or with a new one here, it matters not how it decoded.
        decoder = POSITION_TABLE not in single.tensors or _TABLE_PART in checkpoint.new_parts
        but = ("enhanced_mask_decoder",) if decoder and model.config.decodes_with_emd else ()
        check_architecture(source, single.config, model.config, but)
        params, new = continued(model, single, checkpoint.new_parts, checkpoint.seed)
        if new and jax.process_index() == 0:
            parts = ", ".join(f"{part} ({NEW_PARTS[part]}*)" for part in new)
            print(f"{source}: not its own but new, to be learned: {parts}")
        return params

    def released(self, params: Params, name: str) -> Released:
        """The model called `name` as a checkpoint, its tensors under released names."""
        model = self.models[name]
        tensors = pretrained.to_state_dict(model, self.params_of(params, name))
        return Released(model.config, tensors)

    def depths(self, params: Params) -> Any:
        """How deep each parameter lies, a tree like `params`: what `layer_decay` goes by."""
        return depths(self.config, params)

    def parameter_groups(self, params: Params) -> Any:
        """The name of each parameter's optimizer group, a tree like `params`.

        Each group has an optimizer and a state of its own, and is clipped by its own norm. "a+b"
        is in both groups, which then belong to two stages.
        """
        return jax.tree.map(lambda _: self.groups[0], params)

    def optimizer_config(self, group: str, config: OptimizerConfig) -> OptimizerConfig:
        """The settings of a group's optimizer; `config` is the run's."""
        del group
        return config

    def stages(self) -> tuple[Stage, ...]:
        """The updates of a step, one after another: by default one of all groups, by `loss`."""

        def loss(params, batch, weights, rng):
            value, sums = self.loss(params, batch, weights, rng, train=True)
            return value, (sums, {})

        return (Stage(self.groups, loss),)

    def examples(self, params: Params, data: PreparedData, seed: int, count: int) -> list[str]:
        """Lines that show what the model predicts on `count` held-out examples of each kind."""
        del params, data, seed, count
        return []
