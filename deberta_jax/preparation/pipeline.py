"""From a corpus to prepared data: passes over the text, none of which holds it in memory."""

import dataclasses
import functools
import os
import time
from collections.abc import Iterator

import numpy as np

from deberta_jax import storage
from deberta_jax.data import metadata
from deberta_jax.data.config import DataConfig
from deberta_jax.data.dataset import COUNTS_FILE, TOKENIZER_DIR, counts_digest, model_path
from deberta_jax.data.masking import derive_seed
from deberta_jax.data.metadata import Metadata, SplitCounts
from deberta_jax.data.packed_text import TRAIN, VALIDATION, Sequence, write_records
from deberta_jax.data.sentencepiece_model import added_tokens
from deberta_jax.data.tokenizer import (
    FIRST_ORDINARY_ID,
    MASK_PIECE,
    MODEL_FILE,
    Tokenizer,
    train_tokenizer,
    write_pretrained,
)
from deberta_jax.errors import UserError
from deberta_jax.preparation import corpora, corpus_identity, workers
from deberta_jax.preparation.corpora import CorpusReport, Document
from deberta_jax.preparation.corpus_identity import TextDigest
from deberta_jax.preparation.hold_out import HoldOut
from deberta_jax.preparation.packing import Chunk, pack
from deberta_jax.preparation.progress import Log, Progress, past_redirection
from deberta_jax.preparation.sentences import reservoir_sample


def prepare(
    config: DataConfig,
    directory: str | os.PathLike,
    *,
    overwrite: bool = False,
    log: Log = print,
) -> Metadata:
    """Makes `directory` hold the tokenizer and the packed sequences that `config` describes.

    The result depends on the corpus and the shaping fields of `config`, and on nothing else. It is
    made beside what `directory` holds, and replaces that at the end, the metadata last: a run that
    fails or is interrupted changes nothing.

    Args:
        config: the corpus and what to make of it.
        directory: where the data goes. Other files in it are left alone.
        overwrite: remake what is there already, whatever its settings; both need room meanwhile.
        log: takes lines of progress.

    Raises:
        UserError: the corpus or a setting is at fault, `directory` holds other data, or the corpus
            has changed since those were prepared.
    """
    directory = os.fspath(directory)
    existing = None if overwrite else metadata.read_metadata(directory)
    if existing is not None:
        _compare(existing, config, directory)
        log(f"{directory} is prepared already: {_summary(existing)}")
        return existing
    _check(config)
    begun = time.time()
    with (
        storage.one_line(directory),
        storage.replacing(directory, last=metadata.METADATA_FILE) as unfinished,
        workers.ordered_workers(config.workers) as ordered_map,
    ):
        folder = os.fspath(unfinished)
        made = _Preparation(config, folder, past_redirection(log), ordered_map).run()
        # A file that is changed from now on is newer than the data.
        os.utime(os.path.join(folder, metadata.METADATA_FILE), (begun, begun))
    log(f"prepared {directory}: {_summary(made)}")
    return made


def _compare(existing: Metadata, config: DataConfig, directory: str) -> None:
    """Raises `UserError` unless the data are what `config` asks for, of today's corpus."""
    advice = "name another folder, or remake it with --overwrite"
    if differing := metadata.differences(existing, config):
        raise UserError(
            f"{directory} holds data prepared otherwise ({'; '.join(differing)}); {advice}"
        )
    present = bool(config.tokenizer) and storage.exists(config.tokenizer)
    if present and _configured_tokenizer(config).sha256 != existing.tokenizer_sha256:
        raise UserError(
            f"data.tokenizer={config.tokenizer} has changed since {directory} was prepared with "
            f"it; {advice}"
        )
    corpus_identity.check(existing, config, directory)


def _summary(made: Metadata) -> str:
    return "; ".join(
        f"{split} {counts.documents:,} documents, {counts.tokens:,} tokens, "
        f"{counts.sequences:,} sequences"
        for split, counts in made.splits.items()
    )


def _check(config: DataConfig) -> None:
    if not config.validation_corpus and not 0 < config.validation_share < 1:
        raise UserError(
            f"data.validation_share={config.validation_share}: it has to be between 0 and 1"
        )
    for name, least in (
        ("vocab_size", 8),
        ("tokenizer_sentences", 1),
        ("max_document_megabytes", 1),
        ("workers", 0),
    ):
        if getattr(config, name) < least:
            raise UserError(f"data.{name}={getattr(config, name)}: it has to be {least} or more")
    # Nothing is packed: only the length is looked at, before hours are spent on the corpus.
    next(pack([], config.sequence_length), None)
    if config.tokenizer:
        _configured_tokenizer(config)


def _configured_tokenizer(config: DataConfig) -> Tokenizer:
    tokenizer = Tokenizer(config.tokenizer)
    if tokenizer.num_pieces != config.vocab_size:
        raise UserError(
            f"data.vocab_size={config.vocab_size}, but {config.tokenizer} has "
            f"{tokenizer.num_pieces} pieces; set data.vocab_size={tokenizer.num_pieces}"
        )
    return tokenizer


@dataclasses.dataclass
class _Preparation:
    """One run of `prepare`: some passes over the corpus, none of which holds it in memory."""

    config: DataConfig
    directory: str
    log: Log
    ordered_map: workers.OrderedMap

    def run(self) -> Metadata:
        self.holdout = HoldOut(self.config.seed, self.config.validation_share)
        self.report = CorpusReport()
        self.characters = self._scan()
        tokenizer = self._make_tokenizer()
        tallies = {split: _Tally(tokenizer.vocab_size) for split in (TRAIN, VALIDATION)}
        write_records(
            self.directory,
            self.config.sequence_length,
            lambda split: self._sequences(split, tokenizer, tallies[split]),
        )
        np.save(os.path.join(self.directory, COUNTS_FILE), tallies[TRAIN].counts_V)
        made = Metadata(
            settings=metadata.shaping_settings(self.config),
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            splits={split: tally.result() for split, tally in tallies.items()},
            empty_documents=self.report.empty_documents,
            undecodable_bytes=self.report.undecodable_bytes,
            texts=self.texts,
            unigram_counts_sha256=counts_digest(tallies[TRAIN].counts_V),
        )
        made.write(self.directory)
        return made

    def _read(self, corpus: str, report: CorpusReport) -> Iterator[Document]:
        return corpora.documents(
            corpus, self.config.text_field, self.config.max_document_megabytes, report
        )

    def _scan(self) -> dict[str, float]:
        """Reads everything once: meets what is malformed, chooses what to hold out.

        Returns the characters of each split, those of a held-out share by estimate.
        """
        progress = Progress("reading", self.log)
        self.texts = {}
        digest = TextDigest()
        for document in self._read(self.config.corpus, self.report):
            self.holdout.add(document.name)
            _exhaust(_counted(digest.reading(document), progress))
        self.texts["corpus"] = digest.of(self.config.corpus)
        share = self.config.validation_share
        characters = {
            TRAIN: progress.characters * (1 - share),
            VALIDATION: progress.characters * share,
        }
        if self.config.validation_corpus:
            characters[TRAIN] = progress.characters
            digest = TextDigest()
            for document in self._read(self.config.validation_corpus, self.report):
                _exhaust(_counted(digest.reading(document), progress))
            self.texts["validation_corpus"] = digest.of(self.config.validation_corpus)
            characters[VALIDATION] = progress.characters - characters[TRAIN]
        else:
            self.holdout.resolve(self.config.corpus)
        progress.finish()
        for name, dropped in sorted(self.report.undecodable_bytes.items()):
            self.log(f"{name}: dropped {dropped:,} bytes that are not UTF-8")
        for name, dropped in sorted(self.report.halves.items()):
            self.log(f"{name}: dropped {dropped:,} halves of characters (escapes such as \\ud83d)")
        return characters

    def _documents(self, split: str, label: str) -> Iterator[Document]:
        """The documents of a split, reported on as they are read."""
        progress = Progress(f"{label} {split}", self.log, self.characters[split])
        separate = bool(self.config.validation_corpus)
        held_out = split == VALIDATION
        corpus = self.config.validation_corpus if separate and held_out else self.config.corpus
        for document in self._read(corpus, CorpusReport()):
            if separate or self.holdout.validates(document.name) == held_out:
                yield _counted(document, progress)
        progress.finish()

    def _make_tokenizer(self) -> Tokenizer:
        """Writes the tokenizer: `data.tokenizer`, or one trained on the train split."""
        folder = os.path.join(self.directory, TOKENIZER_DIR)
        os.makedirs(folder)
        if self.config.tokenizer:
            tokenizer = _configured_tokenizer(self.config)
            if added := added_tokens(storage.user_path(self.config.tokenizer), MASK_PIECE):
                self.log(
                    f"{self.config.tokenizer}: {len(added):,} added tokens, such as {added[0]!r}, "
                    "have no id in the data: their text is cut into pieces"
                )
        else:
            trained = os.path.join(folder, MODEL_FILE)
            sentences = self._sentences()
            self.log(
                f"training a tokenizer of {self.config.vocab_size:,} pieces on "
                f"{len(sentences):,} sentences"
            )
            train_tokenizer(sentences, self.config.vocab_size, trained)
            tokenizer = Tokenizer(trained)
        write_pretrained(tokenizer, folder, model_max_length=self.config.sequence_length)
        return Tokenizer(model_path(self.directory), tokenizer.sha256)

    def _sentences(self) -> list[str]:
        batches = workers.batched_pieces(self._documents(TRAIN, "sampling"))
        cleaned = self.ordered_map(workers.clean_sentences, batches)
        return reservoir_sample(
            (sentence for sentences in cleaned for sentence in sentences),
            self.config.tokenizer_sentences,
            derive_seed(self.config.seed, "tokenizer sentences"),
        )

    def _sequences(self, split: str, tokenizer: Tokenizer, tally: "_Tally") -> Iterator[Sequence]:
        batches = workers.batched_pieces(self._documents(split, "tokenizing"))
        encode = functools.partial(workers.encode_pieces, tokenizer.path, tokenizer.sha256)
        encoded = self.ordered_map(encode, batches)
        chunks = (tally.add_chunk(chunk) for batch in encoded for chunk in batch)
        for sequence in pack(chunks, self.config.sequence_length):
            tally.add_sequence(sequence)
            yield sequence
        if not tally.sequences:
            raise UserError(
                f"the {split} split holds no text once it is cleaned; check data.corpus and "
                "data.validation_corpus"
            )


def _counted(document: Document, progress: Progress) -> Document:
    """The document; what is read of it is added to `progress`."""

    def pieces() -> Iterator[str]:
        for piece in document.pieces:
            progress.add(characters=len(piece))
            yield piece
        progress.add(documents=1)

    return dataclasses.replace(document, pieces=pieces())


def _exhaust(document: Document) -> None:
    for _ in document.pieces:
        pass


class _Tally:
    """Counts of a split while it is made."""

    def __init__(self, vocab_size: int):
        self.counts_V = np.zeros(vocab_size, np.int64)
        self.documents = self.sequences = self.positions = self.tokens = 0

    def add_chunk(self, chunk: Chunk) -> Chunk:
        ordinary = chunk.tokens[chunk.tokens >= FIRST_ORDINARY_ID]
        self.counts_V += np.bincount(ordinary, minlength=len(self.counts_V))
        self.tokens += len(chunk.tokens)
        self.documents += chunk.ends_document
        return chunk

    def add_sequence(self, sequence: Sequence) -> None:
        self.sequences += 1
        self.positions += int(np.count_nonzero(sequence.segment_ids))

    def result(self) -> SplitCounts:
        return SplitCounts(self.documents, self.sequences, self.tokens, self.positions)
