"""The code blocks of the documentation, and the mark that says why one is not run."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "launch" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]
}
SHELL = ("bash", "sh", "console")
# Languages of blocks that hold nothing to run.
SHOWN = ("diff", "json", "text", "toml", "yaml")
_MARK = re.compile(r"<!-- (not run:|run by) *(.*?) *-->")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        where: "page:line" of its first line, for messages.
        language: after the fence.
        text: what is between the fences.
        mark: "not run:" or "run by" of the comment directly before it; "" where there is none.
        reason: what that comment says.
    """

    where: str
    language: str
    text: str
    mark: str
    reason: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command. In a console block those are the lines after "$ "."""
        text = self.text.replace("\\\n", " ")
        if self.language == "console":
            text = "\n".join(re.findall(r"^\$ (.+)$", text, re.M))
        lines = (shlex.split(line, comments=True) for line in text.splitlines())
        return [words for words in lines if words]


def read_blocks(name: str) -> list[Block]:
    """The blocks of a page, in order."""
    lines = PAGES[name].read_text().splitlines()
    blocks, number = [], 0
    while number < len(lines):
        if not (fence := re.match(r"```(.*)", lines[number])):
            number += 1
            continue
        end = lines.index("```", number + 1)
        mark = _MARK.fullmatch(lines[number - 1]) if number else None
        text = "".join(f"{line}\n" for line in lines[number + 1 : end])
        where = f"{name}:{number + 1}"
        blocks.append(Block(where, fence[1], text, *(mark.groups() if mark else ("", ""))))
        number = end + 1
    return blocks


def outside_blocks(name: str) -> str:
    """The text of a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", PAGES[name].read_text(), flags=re.M | re.S)
