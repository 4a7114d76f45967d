"""The labels of a task, and the texts of its columns."""

import dataclasses

from deberta_jax.data.tasks.config import TaskConfig
from deberta_jax.data.tasks.sources import Row
from deberta_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Labels:
    """Names of the labels in the order of the model's outputs, and the index of every spelling."""

    names: tuple[str, ...]
    indices: dict[str, int]

    @classmethod
    def of(cls, config: TaskConfig, train_rows: list[Row]) -> "Labels":
        """The labels that `config` lists, else those of the training examples, sorted.

        Raises:
            UserError: there are fewer than two, or there is nothing to take them from.
        """
        stated = config.labels or sorted({_spelled(row[config.label]) for row in train_rows})
        if len(stated) < 2:
            raise UserError(
                f"task.label={config.label!r} has {len(stated)} label(s): {', '.join(stated)}; "
                "a task has at least two (task.labels lists them, task.train holds them)"
            )
        spellings = [name.split("|") for name in stated]
        return cls(
            tuple(names[0] for names in spellings),
            {name: index for index, names in enumerate(spellings) for name in names},
        )

    def index(self, row: Row, column: str) -> int:
        """The index of a row's label.

        Raises:
            UserError: it is none of the labels.
        """
        return self.index_of(_spelled(row[column]), row.where)

    def index_of(self, name: str, where: str) -> int:
        """The index of the label spelled `name`; `where` it was read, for the message."""
        if name not in self.indices:
            raise UserError(
                f"{where}: {name!r} is none of the labels learned: {', '.join(self.names)}"
            )
        return self.indices[name]


def text_of(row: Row, columns: str) -> str:
    """The text of a column, or of several ("a+b") joined by a space.

    Raises:
        UserError: a column is missing, or holds no text.
    """
    texts = {column: row[column] for column in columns.split("+")}
    for column, text in texts.items():
        if not isinstance(text, str):
            raise UserError(f"{row.where}: {column} holds {text!r:.40}, not a text")
    return " ".join(row[column] for column in columns.split("+"))


def _spelled(value: object) -> str:
    """A label as files spell it: JSON's true and 1 are "true" and "1"."""
    return str(value).lower() if isinstance(value, bool) else str(value)
