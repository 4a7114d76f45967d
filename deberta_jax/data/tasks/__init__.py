"""Tasks to fine-tune on: labelled examples to batches, a model's outputs to scores."""

from deberta_jax.data.tasks.choice import MultipleChoice
from deberta_jax.data.tasks.classification import Classification, Regression
from deberta_jax.data.tasks.multi_label import MultiLabel
from deberta_jax.data.tasks.span import SpanExtraction
from deberta_jax.data.tasks.tokens import TokenClassification

# By the objective that learns them. What they have in common is `Task`'s.
TASKS = {
    "classification": Classification,
    "multi_label": MultiLabel,
    "regression": Regression,
    "multiple_choice": MultipleChoice,
    "span": SpanExtraction,
    "token_classification": TokenClassification,
}
