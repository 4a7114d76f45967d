"""Raw text on disk to a stream of documents, each a stream of pieces that fit in memory."""

import codecs
import dataclasses
import glob
import importlib.util
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import IO

from deberta_jax.data.compressed import COMPRESSED, UNREADABLE, reading
from deberta_jax.errors import UserError

PIECE_CHARACTERS = 1 << 20
READ_BYTES = 1 << 20

_FORMATS = (".txt", ".md", ".jsonl")
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

    def add_undecodable(self, name: str, count: int) -> None:
        if count:
            self.undecodable_bytes[name] = self.undecodable_bytes.get(name, 0) + count


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
        if _format(path) == ".jsonl":
            named_texts = _json_documents(path, text_field, max_document_megabytes, report)
        else:
            named_texts = _file_document(path, report)
        for name, texts in named_texts:
            pieces = _without_blank_start(cut(texts, piece_characters))
            if pieces is None:
                report.empty_documents += 1
                continue
            report.documents += 1
            yield Document(name, pieces, markdown=_format(path) == ".md")
    if report.documents == before:
        raise UserError(f"corpus {corpus!r} holds no text; name at least one file that does")


def corpus_files(corpus: str) -> list[str]:
    """The files that `corpus` names: its parts in their order, each part's matches sorted.

    Raises:
        UserError: a part is missing, matches nothing, or has an ending that cannot be read.
    """
    parts = [part.strip() for part in corpus.split(",") if part.strip()]
    if not parts:
        raise UserError("data.corpus is empty; name text files, for example data.corpus=text/*.txt")
    files = list(dict.fromkeys(file for part in parts for file in _matches(part)))
    for file in files:
        if _format(file) not in _FORMATS:
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
    pattern = _package_pattern(part) if part.startswith(_PACKAGE) else os.path.expanduser(part)
    if os.path.isfile(pattern):
        return [pattern]
    if os.path.isdir(pattern):
        raise UserError(f"corpus {part!r} is a folder; name its files, for example {part}/**/*.txt")
    files = sorted(file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))
    if not files:
        what = "matches no file" if glob.has_magic(pattern) else "does not exist"
        raise UserError(f"corpus {part!r} {what} (seen from {os.getcwd()})")
    return files


def _package_pattern(part: str) -> str:
    package, slash, pattern = part.removeprefix(_PACKAGE).partition("/")
    if not package.isidentifier() or not slash or not pattern:
        raise UserError(f"corpus {part!r}: a package's files are written package:NAME/GLOB")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"corpus {part!r}: no package {package!r} here; pip install {package}")
    return os.path.join(glob.escape(next(iter(spec.submodule_search_locations))), pattern)


def _format(path: str) -> str:
    stem, ending = os.path.splitext(path)
    return os.path.splitext(stem)[1] if ending in COMPRESSED else ending


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


def _json_documents(
    path: str, text_field: str, max_megabytes: float, report: CorpusReport
) -> Iterator[tuple[str, Iterator[str]]]:
    limit = int(max_megabytes * 1e6)
    with reading(path) as stream:
        for number in itertools.count(1):
            raw = stream.readline(limit + 1)
            if not raw:
                return
            where = f"{path}:{number}"
            if len(raw) > limit:
                raise UserError(
                    f"{where}: longer than data.max_document_megabytes={max_megabytes:g}; "
                    "raise that or split the line"
                )
            report.bytes += len(raw)
            line = _keep_decodable(raw.decode("utf-8", "surrogateescape"), path, report)
            if number == 1:
                line = line.removeprefix("\ufeff")
            if line.strip():
                yield where, iter([_json_text(line, text_field, where)])


def _json_text(line: str, text_field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); every line holds one object") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON {type(record).__name__}; every line holds one object")
    if text_field not in record:
        names = ", ".join(sorted(record)) or "none"
        raise UserError(f"{where}: no field data.text_field={text_field!r}; there are: {names}")
    text = record[text_field]
    if not isinstance(text, str):
        raise UserError(f"{where}: field {text_field!r} holds {text!r:.40}, not a string")
    return text
