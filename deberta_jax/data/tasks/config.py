"""What a task is: where its examples are, which columns hold what, and how it is scored."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    r"""Examples, their columns, their scores.

    A source of examples is a file or a glob, also compressed (.gz, .xz, .bz2): .tsv, .csv, .jsonl
    with named columns; .json: SQuAD's, RACE's passages, a list of objects; CoNLL's .conll; MCTest's
    .tsv beside its .ans. Or it is "tfds:NAME:SPLIT", such as "tfds:glue/sst2:train".

    Where files of one task are about that differ in names, "a|b" means a or b. A file, a column or
    a label that has the whole text as its name is meant first; "\|" is a bar that parts nothing,
    and so are "\+" and "\\".
    """

    # Its name in tables of results.
    name: str = "task"
    # Source of the examples to learn from.
    train: str = ""
    # Sources to measure on; several of them with names: "matched=FILE", "mismatched=FILE".
    validation: tuple[str, ...] = ()
    # Sources to predict after training, in the same form; they need no labels.
    test: tuple[str, ...] = ()
    # Format of every file: csv, tsv, quoted_tsv (tabs, with quotes as in csv), jsonl, json, conll.
    # Empty: by the file's ending.
    format: str = ""
    # Training examples, drawn at random (data.seed) where there are more. 0: all.
    train_examples: int = 0
    # Names of the columns of a .tsv or .csv file that has no line of names (a first line that holds
    # one of them is one), and of all columns of a .conll file.
    header: tuple[str, ...] = ()
    # Rows of .tsv and .csv files with more or fewer cells than names: "refuse" them, "skip" them,
    # or "keep" the cells that have names.
    uneven_rows: str = "refuse"
    # Column of the text, or the two of a pair; "a+b": both columns, joined by a space.
    texts: tuple[str, ...] = ("text",)
    # Multiple choice: the columns of the choices, or the one that holds a list of them.
    choices: tuple[str, ...] = ("choices",)
    # Column of the label: of the class, the number, the right choice, the tags, the list of labels.
    label: str = "label"
    # The labels in the order of the model's outputs; "a|b" is one with two spellings. Empty: those
    # of the training examples, sorted (numbers by their value).
    labels: tuple[str, ...] = ()
    # Labels whose examples are left out, and counted: "-" of SNLI and MNLI; "" is a missing label.
    skip_labels: tuple[str, ...] = ()
    # Multi-label: what parts the labels in a cell that is no list, for example ",".
    separator: str = ""
    # Multi-label: the probability from which on a label is predicted, one for all or one each.
    # Empty: 0.5 while learning; the test sets by each label's best on the first validation set.
    thresholds: tuple[float, ...] = (0.5,)
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
