"""What every kind of task has; `TextOrPair` and `Classification` document the rest."""

from typing import Self


class Task:
    """A kind of task on a set of labels, if it has any.

    Attributes:
        num_labels: the model's outputs for an item.
        label_names: the labels in the order of those outputs.
        stated_labels: what `task.labels` has to be for these labels without the examples.
    """

    num_labels: int = 1
    label_names: tuple[str, ...] = ()
    stated_labels: tuple[str, ...] = ()

    def tuned(self, predictions: list[dict], examples: list[dict]) -> Self:
        """The task with what is chosen on a measured set, such as thresholds; without, itself."""
        del predictions, examples
        return self
