"""SentencePiece unigram tokenizer whose ids are those of transformers' DebertaV2Tokenizer."""

import functools
import hashlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from deberta_jax import storage
from deberta_jax.data.sentencepiece_model import read_model
from deberta_jax.data.words import unspaced
from deberta_jax.errors import UserError

PAD_ID, CLS_ID, SEP_ID, UNK_ID = range(4)
FIRST_ORDINARY_ID = 4
SPECIAL_PIECES = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
MASK_PIECE = "[MASK]"
MODEL_FILE = "spm.model"
SPACE = "\u2581"

# Longest training sentence. SentencePiece leaves out what exceeds 4,192 bytes.
MAX_SENTENCE_CHARACTERS = 1000
# The trained model depends on the thread count, so it is a constant and not the machine's.
TRAINING_THREADS = 16
# SentencePiece adds scores in float32 along a text: long texts would lose the last digits, and
# with them the agreement with transformers, which adds up word by word.
_ENCODE_CHARACTERS = 2000
# Characters beyond which SentencePiece's 32-bit suffix array overflows.
_LARGE_CORPUS = 1_500_000_000

# Unicode white space as the regular expressions of `tokenizers` know it; Python's \s differs.
_WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
_WHITESPACE += "\u2028\u2029\u202f\u205f\u3000"
_COLLAPSIBLE = re.compile(f"[{_WHITESPACE}]{{2,}}|[\n\r\t]")


def train_tokenizer(
    sentences: Iterable[str],
    vocab_size: int,
    path: str | os.PathLike,
    *,
    num_threads: int = TRAINING_THREADS,
    character_coverage: float = 0.9995,
) -> None:
    """Trains a unigram model of `vocab_size` pieces and writes it to `path`.

    The same sentences and `num_threads` give the same bytes. [PAD], [CLS], [SEP], [UNK] are
    pieces 0 to 3; [MASK] is none: it takes the id after the last piece.

    Raises:
        UserError: `vocab_size` does not suit the sentences; the message states the bound.
    """
    sentences = list(sentences)
    if not sentences:
        raise UserError("no text to train a tokenizer on; check data.corpus")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            pad_id=PAD_ID,
            bos_id=CLS_ID,
            eos_id=SEP_ID,
            unk_id=UNK_ID,
            pad_piece=SPECIAL_PIECES[PAD_ID],
            bos_piece=SPECIAL_PIECES[CLS_ID],
            eos_piece=SPECIAL_PIECES[SEP_ID],
            unk_piece=SPECIAL_PIECES[UNK_ID],
            max_sentence_length=4 * MAX_SENTENCE_CHARACTERS,
            train_extremely_large_corpus=sum(map(len, sentences)) > _LARGE_CORPUS,
            num_threads=num_threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _training_error(vocab_size, str(error)) from error
    with open(path, "wb") as file:
        file.write(model.getvalue())


def _training_error(vocab_size: int, message: str) -> UserError:
    if match := re.search(r"value <= (\d+)", message):
        what = f"too large for this corpus; the largest possible is {match[1]}"
    elif match := re.search(r"required_chars\. \d+ vs (\d+)", message):
        what = f"too small for this corpus; it takes more than {match[1]}"
    else:
        what = "SentencePiece refused to train: " + " ".join(message.split())
    return UserError(f"data.vocab_size={vocab_size}: {what}")


class Tokenizer:
    """A SentencePiece model plus [MASK], the id after its last piece."""

    def __init__(self, path: str | os.PathLike, expected_sha256: str = ""):
        """Loads the model in `path`: a SentencePiece file, tokenizer.json, or the directory of one.

        Raises:
            UserError: there is no model, its special pieces lie elsewhere, or its SHA-256 is not
              `expected_sha256` (a damaged model may load without complaint).
        """
        self.path = os.fspath(path)
        model = self.model = read_model(storage.user_path(self.path), MASK_PIECE)
        self.sha256 = hashlib.sha256(model).hexdigest()
        if expected_sha256 and self.sha256 != expected_sha256:
            raise UserError(
                f"{self.path} has changed: its SHA-256 is {self.sha256}, and should be "
                f"{expected_sha256}; restore it or prepare the data again"
            )
        self._processor = _processor(model, self.path)
        self.num_pieces = self._processor.get_piece_size()
        _check_special_pieces(self._processor, self.path)

    @property
    def vocab_size(self) -> int:
        """Number of ids, [MASK] included."""
        return self.num_pieces + 1

    pad_id, cls_id, sep_id, unk_id = PAD_ID, CLS_ID, SEP_ID, UNK_ID

    @property
    def mask_id(self) -> int:
        return self.num_pieces

    @property
    def num_ordinary(self) -> int:
        """Number of ordinary ids: those from FIRST_ORDINARY_ID up to [MASK]."""
        return self.num_pieces - FIRST_ORDINARY_ID

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        """The text of every id."""
        ids = list(range(self.num_pieces))
        return (*self._processor.id_to_piece(ids), MASK_PIECE)

    @functools.cached_property
    def word_start_V(self) -> np.ndarray:
        """bool [V]: the pieces that begin a word."""
        return np.array([piece.startswith(SPACE) for piece in self.pieces])

    @functools.cached_property
    def unspaced_V(self) -> np.ndarray:
        """bool [V]: the pieces with a letter of a script that has no blanks between words."""
        return unspaced(self.pieces)

    @functools.cached_property
    def is_special_V(self) -> np.ndarray:
        """bool [V]: [PAD], [CLS], [SEP], [UNK] and [MASK]."""
        ids = np.arange(self.vocab_size)
        return (ids < FIRST_ORDINARY_ID) | (ids == self.mask_id)

    def encode(self, text: str) -> np.ndarray:
        """int32 ids of `text`, no special ones added.

        A special piece spelled out in the text ("[MASK]") is text here, never that piece.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The int32 ids of each text, as `encode` gives them."""
        chunks = [_chunks(_normalized(text)) for text in texts]
        encoded = iter(self._processor.encode([chunk for part in chunks for chunk in part]))
        return [self._joined([next(encoded) for _ in part]) for part in chunks]

    def _joined(self, encoded: list[list[int]]) -> np.ndarray:
        # SentencePiece drops a text that is one blank sign; transformers keeps it.
        if encoded == [[]]:
            encoded = [[self._processor.piece_to_id(SPACE)]]
        return np.array([token for ids in encoded for token in ids], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; [PAD], [CLS], [SEP] leave no trace, [UNK] and [MASK] show."""
        unseen = (PAD_ID, CLS_ID, SEP_ID)
        shown = (self.pieces[token] for token in map(int, ids) if token not in unseen)
        return "".join(shown).replace(SPACE, " ").strip()


def write_pretrained(
    tokenizer: Tokenizer, out_dir: str | os.PathLike, *, model_max_length: int
) -> None:
    """Writes the folder that `AutoTokenizer.from_pretrained` reads, ids and all, offline."""
    os.makedirs(out_dir, exist_ok=True)
    with open(os.path.join(out_dir, MODEL_FILE), "wb") as file:
        file.write(tokenizer.model)
    settings = {
        "tokenizer_class": "DebertaV2Tokenizer",
        "model_max_length": model_max_length,
        "do_lower_case": False,
        "split_by_punct": False,
        "vocab_type": "spm",
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": MASK_PIECE,
    }
    with open(os.path.join(out_dir, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump(settings, file, indent=2, sort_keys=True)
        file.write("\n")


def _processor(model: bytes, path: str) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise UserError(f"{path} is no SentencePiece model, or a damaged one") from error


def _check_special_pieces(processor: sentencepiece.SentencePieceProcessor, path: str) -> None:
    count = min(len(SPECIAL_PIECES), processor.get_piece_size())
    pieces = tuple(processor.id_to_piece(list(range(count))))
    if pieces != SPECIAL_PIECES:
        raise UserError(
            f"{path}: its first pieces are {' '.join(pieces)}; they have to be "
            f"{' '.join(SPECIAL_PIECES)}"
        )


def _normalized(text: str) -> str:
    """What DebertaV2Tokenizer makes of a text before it looks for pieces."""
    text = unicodedata.normalize("NFC", _COLLAPSIBLE.sub(" ", text))
    return text.rstrip(_WHITESPACE)


def _chunks(text: str) -> list[str]:
    """The text cut at spaces, without those spaces: SentencePiece puts one before each chunk."""
    if not text:
        return []
    chunks: list[str] = []
    start = 1 if text[0] in (" ", SPACE) else 0
    while True:
        end = text.find(" ", start + _ENCODE_CHARACTERS)
        if end < 0:
            return [*chunks, text[start:]]
        chunks.append(text[start:end])
        start = end + 1
