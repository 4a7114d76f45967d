r"""The small syntax of columns, labels and lists of paths: "a|b" is a or b; "a+b" and "a,b" both.

Whatever there is under the whole text is meant first: a column "C++", a file "a,b.txt", a label
"Action|Comedy" of the training examples. Else the marks part the text. A backslash before a mark,
or before a backslash, takes it for a plain character: "Action\|Comedy".
"""

import re

_TOKEN = re.compile(r"\\[\\|+,=]|.", re.DOTALL)
_ESCAPE = re.compile(r"\\([\\|+,=])")


def parts(text: str, mark: str) -> list[str]:
    """The text cut at every `mark` that is not escaped; escapes stay as they are."""
    found = [""]
    for token in _TOKEN.findall(text):
        if token == mark:
            found.append("")
        else:
            found[-1] += token
    return found


def plain(text: str) -> str:
    """The text that escapes stand for."""
    return _ESCAPE.sub(r"\1", text)


def alternatives(text: str) -> list[str]:
    """What "a|b" may mean: ["a", "b"], without escapes."""
    return [plain(part) for part in parts(text, "|")]


def escaped(name: str) -> str:
    """The text whose only alternative is `name`."""
    return re.sub(r"\\(?=[\\|+,=])|\\$|\|", r"\\\g<0>", name)
