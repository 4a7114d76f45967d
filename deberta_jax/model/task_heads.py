"""The bare model with a task's head: classification, spans, choices, replaced tokens."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.dropout import Dropout
from deberta_jax.model.heads import Deberta, DebertaForMaskedLM, with_defaults
from deberta_jax.model.layers import ACTIVATIONS, Dense, LayerNorm


class Pooler(nn.Module):
    """The first token's hidden state, through a dense layer and its activation."""

    config: ModelConfig
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(self, hidden_BLE: Float[Array, "B L E"]) -> Float[Array, "B E"]:
        width = self.config.hidden_size
        dense = Dense(self.config, self.compute, width, ("embed", None), name="dense")
        return ACTIVATIONS[self.config.pooler_hidden_act](dense(hidden_BLE[:, 0]))


def classifier_dropout(model) -> Dropout:
    """The dropout before a classifier: its own rate, or else that of the hidden states."""
    rate = model.classifier_dropout
    return Dropout(model.config.hidden_dropout_prob if rate is None else rate)


class DebertaForSequenceClassification(Deberta):
    """Logits [B, labels] of a text, or of a pair of texts; one label for regression."""

    num_labels: int = 2
    classifier_dropout: float | None = None

    def setup(self):
        super().setup()
        self.pooler = Pooler(self.config, self.compute)
        self.classifier = Dense(self.config, self.compute, self.num_labels, ("embed", None))
        self.dropout = classifier_dropout(self)

    def __call__(
        self,
        input_ids_BL: Int[Array, "B L"],
        attention_mask_BL: Int[Array, "B L"] | None = None,
        position_ids_BL: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B N"]:
        hidden_BLE = self.encode(input_ids_BL, attention_mask_BL, position_ids_BL)
        pooled_BE = self.dropout(self.pooler(hidden_BLE), deterministic=self.deterministic)
        return self.classifier(pooled_BE)


class DebertaForMultipleChoice(DebertaForSequenceClassification):
    """Logits [B, choices]: each choice with its context is a text of its own."""

    num_labels: int = 1

    def __call__(
        self,
        input_ids_BCL: Int[Array, "B C L"],
        attention_mask_BCL: Int[Array, "B C L"] | None = None,
        position_ids_BCL: Int[Array, "B C L"] | None = None,
    ) -> Float[Array, "B C"]:
        flat: list[Any] = [
            None if x is None else jnp.asarray(x).reshape(-1, x.shape[-1])
            for x in (input_ids_BCL, attention_mask_BCL, position_ids_BCL)
        ]
        return super().__call__(*flat).reshape(input_ids_BCL.shape[:2])


class DebertaForTokenClassification(Deberta):
    """Logits [B, L, labels] of every token."""

    num_labels: int = 2
    classifier_dropout: float | None = None

    def setup(self):
        super().setup()
        self.classifier = Dense(self.config, self.compute, self.num_labels, ("embed", None))
        self.dropout = classifier_dropout(self)

    def __call__(
        self,
        input_ids_BL: Int[Array, "B L"],
        attention_mask_BL: Int[Array, "B L"] | None = None,
        position_ids_BL: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B L N"]:
        hidden_BLE = self.encode(input_ids_BL, attention_mask_BL, position_ids_BL)
        return self.classifier(self.dropout(hidden_BLE, deterministic=self.deterministic))


class DebertaForQuestionAnswering(Deberta):
    """Logits [B, L, 2]: whether an answer starts, and ends, at each token."""

    num_labels: int = 2

    def setup(self):
        super().setup()
        self.qa_outputs = Dense(self.config, self.compute, self.num_labels, ("embed", None))

    def __call__(
        self,
        input_ids_BL: Int[Array, "B L"],
        attention_mask_BL: Int[Array, "B L"] | None = None,
        position_ids_BL: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B L 2"]:
        return self.qa_outputs(self.encode(input_ids_BL, attention_mask_BL, position_ids_BL))


class ReplacedTokenHead(nn.Module):
    """LN(h + h_CLS) -> dense -> activation -> one logit (DeBERTaV3, 3.1, as released).

    h_CLS is the first token of the token's own document.
    """

    config: ModelConfig
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(
        self, hidden_BLE: Float[Array, "B L E"], positions_BL: Int[Array, "B L"]
    ) -> Float[Array, "B L"]:
        c, compute = self.config, self.compute
        hidden_BLE = LayerNorm(c, compute, name="norm")(
            hidden_BLE + _first_of_document(hidden_BLE, positions_BL)
        )
        hidden_BLE = Dense(c, compute, c.hidden_size, ("embed", None), name="dense")(hidden_BLE)
        hidden_BLE = ACTIVATIONS[c.hidden_act](hidden_BLE)
        return Dense(c, compute, 1, ("embed", None), name="classifier")(hidden_BLE)[..., 0]


def _first_of_document(hidden_BLE, positions_BL):
    """The hidden state of the first token of each token's document, [B, L, E].

    A product with zeros and ones, exact in any type: a TPU's gather, and the scatter of its
    gradient, would take longer than the head.
    """
    index_L = jnp.arange(positions_BL.shape[1])
    first_BL = index_L - positions_BL
    is_first_BLK = (first_BL[:, :, None] == index_L).astype(hidden_BLE.dtype)
    return jnp.einsum("BLK,BKE->BLE", is_first_BLK, hidden_BLE, precision="highest")


class DebertaForReplacedToken(Deberta):
    """Logits [B, L]: how likely it is that each token was replaced (RTD's discriminator)."""

    def setup(self):
        super().setup()
        self.mask_predictions = ReplacedTokenHead(self.config, self.compute)

    def __call__(
        self,
        input_ids_BL: Int[Array, "B L"],
        attention_mask_BL: Int[Array, "B L"] | None = None,
        position_ids_BL: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B L"]:
        segments_BL, positions_BL = with_defaults(input_ids_BL, attention_mask_BL, position_ids_BL)
        hidden_BLE = self.encode(input_ids_BL, segments_BL, positions_BL)
        return self.mask_predictions(hidden_BLE, positions_BL)


# The model of each task; None is the bare one.
TASK_MODELS: dict[str | None, type[Deberta]] = {
    None: Deberta,
    "masked_lm": DebertaForMaskedLM,
    "replaced_token": DebertaForReplacedToken,
    "sequence_classification": DebertaForSequenceClassification,
    "token_classification": DebertaForTokenClassification,
    "question_answering": DebertaForQuestionAnswering,
    "multiple_choice": DebertaForMultipleChoice,
}


def task_of(model: Deberta) -> str | None:
    """The task that `model` is made for."""
    return next(task for task, kind in TASK_MODELS.items() if kind is type(model))
