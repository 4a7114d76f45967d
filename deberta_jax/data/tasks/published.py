"""The forms of published files that hold several examples in one record: SQuAD, RACE, MCTest."""

import os
from collections.abc import Iterator
from typing import Any

from deberta_jax import storage
from deberta_jax.data.formats.json_text import listed
from deberta_jax.data.formats.lines import text_lines
from deberta_jax.errors import UserError

Pairs = Iterator[tuple[str, dict[str, Any]]]

_LISTED = ("questions", "options", "answers")


def json_rows(document: Any, path: str) -> Pairs:
    """(where, values) of the examples of a .json file.

    It is a list of objects, also below "data"; SQuAD's file; one passage of RACE; or one object, an
    example by itself.

    Raises:
        UserError: it is none of these.
    """
    if (records := listed(document)) is not None:
        for number, item in enumerate(records, start=1):
            where = f"{path}, object {number}"
            if not isinstance(item, dict):
                raise UserError(f"{where}: a JSON {type(item).__name__}; it has to be an object")
            yield from _squad(item, path) if "paragraphs" in item else [(where, item)]
    elif isinstance(document, dict) and (is_passage(document) or _is_example(document)):
        yield path, document
    else:
        raise UserError(
            f"{path} is no file of SQuAD's form or RACE's, and no list of objects (pandas writes "
            "one by to_json(orient='records'))"
        )


def _is_example(values: dict[str, Any]) -> bool:
    """Whether an object is one example; pandas' object of columns holds objects alone."""
    return any(isinstance(value, str) for value in values.values())


def _squad(article: dict[str, Any], path: str) -> Pairs:
    """SQuAD's file: a row a question, with its context and its answers."""
    try:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                values = {"context": paragraph["context"], **question}
                yield f"{path}, question {question['id']}", values
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of SQuAD's form: {error!r}") from error


def is_passage(values: dict[str, Any]) -> bool:
    """Whether a record is a passage of RACE's form, with several questions."""
    return all(isinstance(values.get(name), list) for name in _LISTED[:2]) and isinstance(
        values.get("answers", []), list
    )


def questions(where: str, values: dict[str, Any]) -> Pairs:
    """A row for each question of a passage of RACE's form.

    Raises:
        UserError: there are not as many options, or answers, as questions.
    """
    counts = {name: len(values[name]) for name in _LISTED if name in values}
    if len(set(counts.values())) > 1:
        stated = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UserError(f"{where}: {stated}; there has to be one of each for a question")
    rest = {name: value for name, value in values.items() if name not in _LISTED}
    for index, question in enumerate(values["questions"]):
        row = {**rest, "question": question, "choices": values["options"][index]}
        if "answers" in values:
            row["label"] = values["answers"][index]
        yield f"{where}, question {index + 1}", row


def mctest_answers(path: str) -> str | None:
    """The file of answers beside a file of MCTest's stories, if there is one."""
    answers = os.path.splitext(path)[0] + ".ans"
    return answers if storage.is_file(answers) else None


def mctest(path: str) -> Pairs:
    """MCTest's files: a story and four questions a line, each with four choices.

    Raises:
        UserError: a line is no such story, or the answers are not as many.
    """
    answers_path = mctest_answers(path)
    assert answers_path
    answers = [line.split("\t") for _, line in text_lines(answers_path)]
    stories = [line.split("\t") for _, line in text_lines(path)]
    if len(answers) != len(stories):
        raise UserError(f"{answers_path} has {len(answers)} lines, {path} {len(stories)}")
    for number, (cells, right) in enumerate(zip(stories, answers, strict=True), start=1):
        where = f"{path}:{number}"
        if len(cells) != 23 or len(right) != 4:
            raise UserError(f"{where}: not a story of MCTest with four questions of four choices")
        context = cells[2].replace("\\newline", "\n").replace("\\tab", "\t")
        for index in range(4):
            question, *choices = cells[3 + 5 * index : 8 + 5 * index]
            values = {
                "id": f"{cells[0]}.{index}",
                "context": context,
                "question": question.removeprefix("one: ").removeprefix("multiple: "),
                "choices": choices,
                "label": right[index],
            }
            yield f"{where}, question {index + 1}", values
