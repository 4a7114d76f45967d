"""Tokenizers of released checkpoints, with the ids that transformers 5 gives the same text.

A directory's tokenizer is rebuilt as `AutoTokenizer` rebuilds it. Some of what that does is worth
knowing:

- The normalizer stored in `spm.model` or in `tokenizer.json` is not used: v2 and v3 texts get NFC
  and their white space collapsed. Where the stored one folds more (full-width letters, ligatures),
  SentencePiece itself, and so the model's own pre-training, had other ids for such characters.
- A special token spelled out in a text ("[MASK]") becomes that token, unless the settings hold
  `split_special_tokens`. In our own `deberta_jax.data.tokenizer.Tokenizer` it is text.
- A v1 pair is `[CLS] a [SEP] [SEP] b [SEP]`; a v2 or v3 pair has one [SEP] in the middle.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from deberta_jax import storage
from deberta_jax.data.tokenizer import SPACE
from deberta_jax.data.words import unspaced
from deberta_jax.errors import UserError
from deberta_jax.interop.tokenizer_files import (
    DEFAULT_SPECIALS,
    GENERIC,
    MERGES,
    SAVED,
    SETTINGS,
    V1,
    VOCAB,
    TokenizerFiles,
    added_tokens,
    class_name,
    scored_vocab,
    special_tokens,
    token_text,
    vocab_and_merges,
    vocabulary_file,
    with_role,
    without_role,
)

# How a byte-level piece spells the space before a word.
_BYTE_LEVEL_SPACE = "\u0120"


class PretrainedTokenizer:
    """Text to ids and back; made by `load_tokenizer`."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_ids: Mapping[str, int],
        settings: Mapping,
        files: Mapping[str, bytes],
    ):
        """Holds what `load_tokenizer` read.

        Args:
            backend: the tokenizer itself.
            special_ids: the ids of pad, cls, sep, unk and mask.
            settings: what `tokenizer_config.json` is to hold.
            files: the other files of the directory, by name.
        """
        self._backend = backend
        self._settings = dict(settings)
        self._files = dict(files)
        self.pad_id = special_ids["pad"]
        self.cls_id = special_ids["cls"]
        self.sep_id = special_ids["sep"]
        self.unk_id = special_ids["unk"]
        self.mask_id = special_ids["mask"]
        vocab = backend.get_vocab(with_added_tokens=True)
        pieces = [""] * (max(vocab.values()) + 1)
        for piece, token in vocab.items():
            pieces[token] = piece
        # The text of every id; an id that the files leave out has none.
        self.pieces = tuple(pieces)

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, added tokens included; the model may have more rows."""
        return len(self.pieces)

    @functools.cached_property
    def word_start_V(self) -> np.ndarray:
        """bool [V]: the pieces that begin a word.

        In a v1 vocabulary they are the pieces with a space before them, and so a text's first word
        usually has none.
        """
        # No byte-level piece holds the blank sign, which is three bytes there.
        blank = any(piece.startswith(SPACE) for piece in self.pieces)
        space = SPACE if blank else _BYTE_LEVEL_SPACE
        return np.array([piece.startswith(space) for piece in self.pieces])

    @functools.cached_property
    def unspaced_V(self) -> np.ndarray:
        """bool [V]: the pieces with a letter of a script that has no blanks between words.

        A v1 vocabulary has none: its pieces are bytes.
        """
        return unspaced(self.pieces)

    def encode(
        self, text: str, pair: str | None = None, add_special_tokens: bool = True
    ) -> np.ndarray:
        """int32 ids of `text`, or of `text` and `pair`.

        Raises:
            UserError: a text has an unpaired surrogate, for which there is no UTF-8.
        """
        pairs = None if pair is None else [pair]
        return self.encode_batch([text], pairs, add_special_tokens)[0]

    def encode_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        add_special_tokens: bool = True,
    ) -> list[np.ndarray]:
        """The ids of each text, or of each text and its pair, as `encode` gives them.

        An empty second text is still one: its [SEP] is there, as in a batch of transformers.
        """
        _refuse_surrogates(texts)
        _refuse_surrogates(pairs or ())
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encoded = self._backend.encode_batch_fast(inputs, add_special_tokens=add_special_tokens)
        return [np.array(encoding.ids, np.int32) for encoding in encoded]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(int32 ids [n], int32 characters [n, 2]) of each text, without special tokens.

        A token is the characters from its first number up to its second, a blank before the word
        left out.
        """
        _refuse_surrogates(texts)
        results = []
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            spans = np.array(encoding.offsets, np.int32).reshape(-1, 2)
            for token, span in zip(encoding.ids, spans, strict=True):
                while span[0] < span[1] and text[span[0]].isspace():
                    span[0] += 1
                if self.pieces[token] == SPACE:  # put before the text, it claims a letter
                    span[1] = span[0]
            results.append((np.array(encoding.ids, np.int32), spans))
        return results

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`. Spaces before punctuation stay, whatever the settings say."""
        return self._backend.decode(list(map(int, ids)), skip_special_tokens=skip_special_tokens)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the files that were read, which `load_tokenizer` and AutoTokenizer both load.

        Raises:
            UserError: `directory` has a file of another tokenizer, which would be read instead.
        """
        directory = storage.as_path(directory)
        settings = json.dumps(self._settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        files = {**self._files, SETTINGS: settings.encode()}
        for name in SAVED:
            if name not in files and (directory / name).exists():
                raise UserError(
                    f"{directory / name} belongs to another tokenizer; "
                    "remove it or save to an empty directory"
                )
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            storage.write(directory / name, content)


def load_tokenizer(directory: str | os.PathLike) -> PretrainedTokenizer:
    """The tokenizer in a checkpoint directory: DeBERTa v1, v2, v3 or mDeBERTa.

    The vocabulary is `tokenizer.json`, else `spm.model` (v2 on), else `vocab.json` and
    `merges.txt` (v1). Settings come from `tokenizer_config.json`, `added_tokens.json` and
    `special_tokens_map.json`; `config.json` tells v1 from v2 where those do not.

    Raises:
        UserError: a file is missing, damaged, or of a kind that is not supported.
    """
    files = TokenizerFiles(storage.local_copy(directory))
    settings = files.json(SETTINGS)
    kind = class_name(files)
    source = vocabulary_file(files, kind)
    backend, controls = _without_specials(files, kind, source)
    named = special_tokens(files)
    added = added_tokens(files, source, named)
    specials = named if kind == GENERIC else {**DEFAULT_SPECIALS, **named}
    try:
        _add_tokens(backend, added, specials, without_role(specials) or controls)
    except (TypeError, ValueError) as error:
        raise files.damaged(SETTINGS, error) from error
    for token, entry in added.items():
        if (actual := backend.token_to_id(entry.content)) != token:
            raise UserError(
                f"{files.path}: {entry.content!r} has the id {token} among the added tokens and "
                f"{actual} after {source}; the files have to belong together"
            )
    special_ids = {
        role: _special_id(files, backend, specials.get(f"{role}_token"), role)
        for role in ("pad", "cls", "sep", "unk", "mask")
    }
    if kind != GENERIC:
        backend.post_processor = _template(specials, special_ids, kind)
    backend.encode_special_tokens = bool(settings.get("split_special_tokens", False))
    backend.no_padding()
    backend.no_truncation()
    settings = {**settings, "tokenizer_class": kind}
    return PretrainedTokenizer(backend, special_ids, settings, files.to_save())


def _without_specials(
    files: TokenizerFiles, kind: str, source: str
) -> tuple[tokenizers.Tokenizer, list[AddedToken]]:
    """The tokenizer of a vocabulary alone, and the pieces in it that no text gives."""
    settings = files.json(SETTINGS)
    try:
        if kind == GENERIC:
            return tokenizers.Tokenizer.from_buffer(files.contents[source]), []
        if kind == V1:
            return _byte_level(*vocab_and_merges(files, source), settings), []
        vocab, unk, controls = scored_vocab(files, source)
        return _unigram(vocab, unk, settings), controls
    except UserError:
        raise
    except Exception as error:  # `tokenizers` raises nothing more precise
        name = f"{VOCAB} or {MERGES}" if source == VOCAB else source
        raise files.damaged(name, error) from error


def _unigram(vocab: list[tuple[str, float]], unk: int, settings: Mapping) -> tokenizers.Tokenizer:
    """What DebertaV2Tokenizer builds from a vocabulary."""
    unk_piece = token_text(settings.get("unk_token", DEFAULT_SPECIALS["unk_token"]))
    with contextlib.suppress(ValueError):
        unk = vocab.index((unk_piece, 0.0))
    backend = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=unk, byte_fallback=False))
    lower = [normalizers.Lowercase()] if settings.get("do_lower_case", False) else []
    backend.normalizer = normalizers.Sequence(
        [
            *lower,
            normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "),
            normalizers.NFC(),
            normalizers.Strip(left=False, right=True),
        ]
    )
    punct = settings.get("split_by_punct", False)
    split = [pre_tokenizers.Punctuation(behavior="isolated")] if punct else []
    scheme = "always" if settings.get("add_prefix_space", True) else "first"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*split, pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)]
    )
    backend.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    return backend


def _byte_level(vocab: dict, merges: list, settings: Mapping) -> tokenizers.Tokenizer:
    """What DebertaTokenizer builds from a vocabulary and its merges."""
    model = models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="")
    backend = tokenizers.Tokenizer(model)
    add_prefix_space = bool(settings.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def _add_tokens(
    backend: tokenizers.Tokenizer,
    added: Mapping[int, AddedToken],
    specials: Mapping,
    extras: Sequence,
) -> None:
    """Makes the added tokens, then those special ones that are not among them, `backend`'s."""
    named = with_role(specials)
    contents = {token_text(value) for value in named}
    tokens = list(added.values())
    for token in tokens:
        token.special = token.special or token.content in contents
    known = {token.content for token in tokens}
    known.update(token.content for token in backend.get_added_tokens_decoder().values())
    missing = [value for value in (*named, *extras) if token_text(value) not in known]
    backend.add_tokens([*tokens, *map(_special_token, missing)])


def _special_token(value: str | dict | AddedToken) -> AddedToken:
    if isinstance(value, dict):
        fields = {key: field for key, field in value.items() if key != "__type"}
        return AddedToken(**{**fields, "special": True})
    return AddedToken(value, special=True) if isinstance(value, str) else value


def _special_id(files: TokenizerFiles, backend: tokenizers.Tokenizer, value, role: str) -> int:
    token = None if value is None else backend.token_to_id(token_text(value))
    if token is None:
        raise UserError(f"{files.path / SETTINGS} has to name a {role}_token")
    return token


def _template(specials: Mapping, special_ids: Mapping, kind: str) -> processors.TemplateProcessing:
    cls, sep = token_text(specials["cls_token"]), token_text(specials["sep_token"])
    between = [sep, sep] if kind == V1 else [sep]
    return processors.TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", *between, "$B:1", f"{sep}:1"],
        special_tokens=[(cls, special_ids["cls"]), (sep, special_ids["sep"])],
    )


def _refuse_surrogates(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"text {number} has an unpaired surrogate, U+{ord(text[error.start]):04X}, at "
                f"character {error.start}; replace it, for instance with U+FFFD"
            ) from error
