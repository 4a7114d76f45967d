"""Work spread over processes, results in order, memory bounded."""

import collections
import contextlib
import functools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple, TypeVar

from deberta_jax.data.tokenizer import Tokenizer
from deberta_jax.parallel.processes import available_cores
from deberta_jax.preparation import cleaning
from deberta_jax.preparation.corpora import Document
from deberta_jax.preparation.packing import Chunk
from deberta_jax.preparation.sentences import split_sentences

Item = TypeVar("Item")
Result = TypeVar("Result")
OrderedMap = Callable[[Callable[[Item], Result], Iterable[Item]], Iterator[Result]]

# Enough text for the work to outweigh sending it to another process.
BATCH_CHARACTERS = 1 << 20


class Piece(NamedTuple):
    """A piece of a document on its way to a worker."""

    text: str
    markdown: bool
    ends_document: bool


@contextlib.contextmanager
def ordered_workers(workers: int) -> Iterator[OrderedMap]:
    """Gives `map` over `workers` processes (0: one for each core), results in the items' order.

    At most two items a worker are in flight, so an endless iterable is no burden.
    """
    workers = workers or available_cores()
    if workers == 1:
        yield map
        return
    # Threads of the data libraries may be running here, and those do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield functools.partial(_ordered_map, pool, 2 * workers)


def _ordered_map(
    pool: ProcessPoolExecutor,
    in_flight: int,
    function: Callable[[Item], Result],
    items: Iterable[Item],
) -> Iterator[Result]:
    pending: collections.deque = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= in_flight:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def batched_pieces(documents: Iterable[Document]) -> Iterator[list[Piece]]:
    """The documents' pieces in batches worth a trip to a worker."""
    batch, characters = [], 0
    for document in documents:
        held = ""
        for piece in document.pieces:
            if held:
                batch.append(Piece(held, document.markdown, False))
            held = piece
            characters += len(piece)
            if characters >= BATCH_CHARACTERS and batch:
                yield batch
                batch, characters = [], len(held)
        batch.append(Piece(held, document.markdown, True))
    if batch:
        yield batch


def clean_sentences(pieces: list[Piece]) -> list[str]:
    """The sentences of the pieces' cleaned text."""
    return [
        sentence
        for piece in pieces
        for sentence in split_sentences(cleaning.clean(piece.text, markdown=piece.markdown))
    ]


def encode_pieces(tokenizer: str, sha256: str, pieces: list[Piece]) -> list[Chunk]:
    """The tokens of each piece's cleaned text, by the tokenizer at the path `tokenizer`."""
    texts = [cleaning.clean(piece.text, markdown=piece.markdown) for piece in pieces]
    encoded = _load(tokenizer, sha256).encode_batch(texts)
    return [Chunk(ids, piece.ends_document) for ids, piece in zip(encoded, pieces, strict=True)]


@functools.lru_cache(maxsize=1)
def _load(tokenizer: str, sha256: str) -> Tokenizer:
    return Tokenizer(tokenizer, sha256)
