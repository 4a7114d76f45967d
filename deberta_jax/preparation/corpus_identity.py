"""Whether a corpus still is what data was prepared from."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from typing import Any

from deberta_jax import storage
from deberta_jax.data.config import DataConfig
from deberta_jax.data.metadata import METADATA_FILE, Metadata
from deberta_jax.errors import UserError
from deberta_jax.preparation import corpora
from deberta_jax.preparation.corpora import CorpusReport, Document

FIELDS = ("corpus", "validation_corpus")


class TextDigest:
    """SHA-256 of the documents that pass through it, in their order.

    Neither the names of files nor how documents are cut into pieces change it.
    """

    def __init__(self):
        self._hash = hashlib.sha256()

    def reading(self, document: Document) -> Document:
        """The document; what is read of it is added."""

        def pieces() -> Iterator[str]:
            for piece in document.pieces:
                self._hash.update(piece.encode("utf-8", "surrogatepass"))
                yield piece
            # No UTF-8 text has these bytes: a document's end is not to be mistaken for text.
            self._hash.update(b"\xff\x01" if document.markdown else b"\xff\x00")

        return dataclasses.replace(document, pieces=pieces())

    def of(self, corpus: str) -> dict[str, Any]:
        """What metadata say of a corpus that has been read (`Metadata.texts`)."""
        files = corpora.corpus_files(corpus)
        return {
            "files": len(files),
            "bytes": sum(map(storage.size, files)),
            "sha256": self._hash.hexdigest(),
        }


def check(metadata: Metadata, config: DataConfig, directory: str) -> None:
    """Raises `UserError` where the corpus has changed since `directory` was prepared from it.

    Where as many files of the same size in all are older than the data, nothing is read. A corpus
    that is no longer there says nothing, nor do data that an older program prepared.
    """
    for field in FIELDS:
        corpus, stored = getattr(config, field), metadata.texts.get(field)
        if not corpus or stored is None:
            continue
        try:
            files = corpora.corpus_files(corpus)
        except UserError:
            continue
        sizes = len(files), sum(map(storage.size, files))
        before = stored["files"], stored["bytes"]
        made = storage.modified(os.path.join(directory, METADATA_FILE))
        if sizes == before and max(map(storage.modified, files)) < made:
            continue
        if sizes != before or _digest(corpus, config) != stored["sha256"]:
            raise UserError(
                f"data.{field}={corpus} has changed since {directory} was prepared from it: "
                f"{_described(*before)} then, {_described(*sizes)} now"
                + ("; the text differs" if sizes == before else "")
                + "; name another folder (data.dir), or remake it with --overwrite"
            )


def _described(files: int, size: int) -> str:
    return f"{files:,} file{'s' * (files != 1)} of {size:,} bytes"


def _digest(corpus: str, config: DataConfig) -> str:
    digest = TextDigest()
    megabytes = config.max_document_megabytes
    for document in corpora.documents(corpus, config.text_field, megabytes, CorpusReport()):
        for _ in digest.reading(document).pieces:
            pass
    return digest.of(corpus)["sha256"]
