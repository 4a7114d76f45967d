"""What a task is: where its examples are, which columns hold what, and how it is scored."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Examples, their columns, their scores.

    A source of examples is a file, also compressed (.gz, .xz, .bz2): .tsv, .csv, .jsonl with named
    columns; SQuAD's .json; CoNLL's .conll; MCTest's .tsv beside its .ans. Or it is
    "tfds:NAME:SPLIT", such as "tfds:glue/sst2:train". Where files of one task are about that differ
    in names, "a|b" means a or b.
    """

    # Its name in tables of results.
    name: str = "task"
    # Source of the examples to learn from.
    train: str = ""
    # Sources to measure on; several of them with names: "matched=FILE", "mismatched=FILE".
    validation: tuple[str, ...] = ()
    # Sources to predict after training, in the same form; they need no labels.
    test: tuple[str, ...] = ()
    # Training examples, drawn at random (data.seed) where there are more. 0: all.
    train_examples: int = 0
    # Names of the columns of a .tsv or .csv file that has no line of names.
    header: tuple[str, ...] = ()
    # Column of the text, or the two of a pair; "a+b": both columns, joined by a space.
    texts: tuple[str, ...] = ("text",)
    # Multiple choice: the columns of the choices, or the one that holds a list of them.
    choices: tuple[str, ...] = ("choices",)
    # Column of the label: of the class, the number, the right choice, the list of tags.
    label: str = "label"
    # The labels in the order of the model's outputs. Empty: those of the training examples, sorted.
    labels: tuple[str, ...] = ()
    # What predictions are measured by (data/tasks/scores.py), the main one first.
    scores: tuple[str, ...] = ("accuracy",)
    # Tokens in the longest input, special ones included. Longer texts are cut (contexts of
    # questions are read in several windows).
    max_length: int = 128
    # Lengths that batches are padded to, at most. Each is compiled once.
    buckets: int = 6
    # Questions: tokens that two neighbouring windows of a context share.
    stride: int = 128
    # Questions: tokens of the longest question; a longer one is cut.
    max_question_length: int = 64
    # Questions: tokens of the longest answer that is looked for.
    max_answer_length: int = 30
