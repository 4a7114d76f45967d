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
from pathlib import Path

import numpy as np
import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from deberta_jax.data.tokenizer import SPACE
from deberta_jax.errors import UserError

_TOKENIZER = "tokenizer.json"
_SENTENCEPIECE = ("spm.model", "spiece.model")
_VOCAB, _MERGES = "vocab.json", "merges.txt"
_SETTINGS = "tokenizer_config.json"
_ADDED = "added_tokens.json"
_SPECIAL = "special_tokens_map.json"
_CONFIG = "config.json"
_VOCABULARIES = (_TOKENIZER, *_SENTENCEPIECE, _VOCAB, _MERGES)

_V1, _V2 = "DebertaTokenizer", "DebertaV2Tokenizer"
# tokenizer.json is the whole tokenizer, to be taken as it is.
_GENERIC = "PreTrainedTokenizerFast"
_GENERIC_NAMES = (_GENERIC, "PreTrainedTokenizer", "TokenizersBackend")
_NEEDED = {
    _V1: f"{_TOKENIZER}, or {_VOCAB} and {_MERGES}",
    _V2: f"{_TOKENIZER} or spm.model",
    _GENERIC: _TOKENIZER,
}
_CLASS_OF_MODEL = {"deberta": _V1, "deberta-v2": _V2}

# In transformers' order, which decides the ids of those that the vocabulary lacks.
_DEFAULT_SPECIALS = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_EXTRAS = ("extra_special_tokens", "additional_special_tokens")
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
        found = []
        for text, encoding in zip(
            texts, self._backend.encode_batch(list(texts), add_special_tokens=False), strict=True
        ):
            spans = np.array(encoding.offsets, np.int32).reshape(-1, 2)
            for token, span in zip(encoding.ids, spans, strict=True):
                while span[0] < span[1] and text[span[0]].isspace():
                    span[0] += 1
                if self.pieces[token] == SPACE:  # put before the text, it claims a letter
                    span[1] = span[0]
            found.append((np.array(encoding.ids, np.int32), spans))
        return found

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`. Spaces before punctuation stay, whatever the settings say."""
        return self._backend.decode(list(map(int, ids)), skip_special_tokens=skip_special_tokens)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the files that were read, which `load_tokenizer` and AutoTokenizer both load.

        Raises:
            UserError: `directory` has a file of another tokenizer, which would be read instead.
        """
        directory = Path(directory)
        settings = json.dumps(self._settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        files = {**self._files, _SETTINGS: settings.encode()}
        for name in (*_VOCABULARIES, _ADDED, _SPECIAL):
            if name not in files and (directory / name).exists():
                raise UserError(
                    f"{directory / name} belongs to another tokenizer; "
                    "remove it or save to an empty directory"
                )
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_bytes(content)


def load_tokenizer(directory: str | os.PathLike) -> PretrainedTokenizer:
    """The tokenizer in a checkpoint directory: DeBERTa v1, v2, v3 or mDeBERTa.

    The vocabulary is `tokenizer.json`, else `spm.model` (v2 on), else `vocab.json` and
    `merges.txt` (v1). Settings come from `tokenizer_config.json`, `added_tokens.json` and
    `special_tokens_map.json`; `config.json` tells v1 from v2 where those do not.

    Raises:
        UserError: a file is missing, damaged, or of a kind that is not supported.
    """
    files = _Files(Path(directory))
    settings = files.json(_SETTINGS)
    kind = _class_name(files)
    source = _vocabulary_file(files, kind)
    controls = []
    try:
        if kind == _GENERIC:
            backend = tokenizers.Tokenizer.from_buffer(files.contents[source])
        elif kind == _V1:
            backend = _byte_level(*_vocab_and_merges(files, source), settings)
        else:
            vocab, unk, controls = _scored_vocab(files, source)
            backend = _unigram(vocab, unk, settings)
    except UserError:
        raise
    except Exception as error:  # `tokenizers` raises nothing more precise
        name = f"{_VOCAB} or {_MERGES}" if source == _VOCAB else source
        raise files.damaged(name, error) from error

    added, given = _added_tokens(files, source)
    specials = given if kind == _GENERIC else {**_DEFAULT_SPECIALS, **given}
    try:
        _add_tokens(backend, added, specials, _extras(specials) or controls)
    except (TypeError, ValueError) as error:
        raise files.damaged(_SETTINGS, error) from error
    for token, entry in added.items():
        if (found := backend.token_to_id(entry.content)) != token:
            raise UserError(
                f"{files.path}: {entry.content!r} has the id {token} among the added tokens and "
                f"{found} after {source}; the files have to belong together"
            )
    special_ids = {
        role: _special_id(files, backend, specials.get(f"{role}_token"), role)
        for role in ("pad", "cls", "sep", "unk", "mask")
    }
    if kind != _GENERIC:
        backend.post_processor = _template(specials, special_ids, kind)
    backend.encode_special_tokens = bool(settings.get("split_special_tokens", False))
    backend.no_padding()
    backend.no_truncation()
    saved = {
        "spm.model" if name in _SENTENCEPIECE else name: content
        for name, content in files.contents.items()
        if name in (*_VOCABULARIES, _ADDED, _SPECIAL)
    }
    return PretrainedTokenizer(backend, special_ids, {**settings, "tokenizer_class": kind}, saved)


class _Files:
    """What a directory holds of a tokenizer."""

    def __init__(self, path: Path):
        self.path = path
        if not path.is_dir():
            raise UserError(f"tokenizer directory {path} does not exist")
        self.contents = {}
        for name in (*_VOCABULARIES, _SETTINGS, _ADDED, _SPECIAL, _CONFIG):
            try:
                self.contents[name] = (path / name).read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UserError(f"{path / name} cannot be read: {error.strerror}") from error
        if "spm.model" in self.contents:
            self.contents.pop("spiece.model", None)
        self._objects = {}

    def json(self, name: str) -> dict:
        """The JSON object in a file, not to be changed; empty where there is no such file."""
        if name not in self._objects:
            try:
                self._objects[name] = json.loads(self.contents.get(name, b"{}"))
            except ValueError as error:
                raise self.damaged(name, error) from error
            if not isinstance(self._objects[name], dict):
                raise UserError(f"{self.path / name} has to hold a JSON object")
        return self._objects[name]

    def damaged(self, name: str, error: Exception) -> UserError:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return UserError(f"{self.path / name} is damaged ({reason}); restore it")


def _class_name(files: _Files) -> str:
    """The transformers class that AutoTokenizer picks, without the old suffix "Fast"."""
    config = files.json(_CONFIG)
    name = (
        files.json(_SETTINGS).get("tokenizer_class")
        or config.get("tokenizer_class")
        or _CLASS_OF_MODEL.get(config.get("model_type"))
    )
    if not name and _TOKENIZER in files.contents:
        name = _V2 if _model(files).get("type") == "Unigram" else _V1
    elif not name:
        name = _V2 if any(file in files.contents for file in _SENTENCEPIECE) else _V1
    if name in _GENERIC_NAMES:
        return _GENERIC
    if (name := str(name).removesuffix("Fast")) not in _NEEDED:
        raise UserError(
            f"{files.path}: a tokenizer of class {name} is not supported; "
            f"it has to be {_V1}, {_V2} or {_GENERIC}"
        )
    return name


def _vocabulary_file(files: _Files, kind: str) -> str:
    candidates = {_V1: (_TOKENIZER, _VOCAB), _V2: (_TOKENIZER, *_SENTENCEPIECE)}
    for name in candidates.get(kind, (_TOKENIZER,)):
        if name in files.contents:
            return name
    if any(name in files.contents for name in _VOCABULARIES):
        what = f"{files.path} has no vocabulary of a {kind}"
        raise UserError(f"{what}; it has to hold {_NEEDED[kind]}")
    what = f"{files.path} has no tokenizer"
    if (files.path / "bpe_encoder.bin").exists():
        what += " that is supported (bpe_encoder.bin is not)"
    raise UserError(f"{what}; it has to hold {_TOKENIZER}, spm.model, or {_VOCAB} and {_MERGES}")


def _model(files: _Files) -> dict:
    model = files.json(_TOKENIZER).get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise UserError(f"{files.path / _TOKENIZER} is damaged: it has no vocabulary")
    return model


def _model_of_type(files: _Files, model_type: str) -> dict:
    model = _model(files)
    if model.get("type", model_type) != model_type:
        raise UserError(
            f"{files.path / _TOKENIZER} holds a {model['type']} model; "
            f"for this class of tokenizer it has to be {model_type}"
        )
    return model


def _vocab_and_merges(files: _Files, source: str) -> tuple[dict, list[tuple[str, ...]]]:
    if source == _TOKENIZER:
        model = _model_of_type(files, "BPE")
        merges = model["merges"]
        return model["vocab"], [
            tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges
        ]
    if _MERGES not in files.contents:
        raise UserError(f"{files.path / _MERGES} is missing; {_VOCAB} needs it")
    try:
        lines = files.contents[_MERGES].decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise files.damaged(_MERGES, error) from error
    merges = []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#version"):
            continue
        pair = tuple(line.removesuffix("\r").split(" "))
        if len(pair) != 2:
            raise UserError(f"{files.path / _MERGES}, line {number}: it has to be two pieces")
        merges.append(pair)
    return files.json(_VOCAB), merges


def _scored_vocab(
    files: _Files, source: str
) -> tuple[list[tuple[str, float]], int, list[AddedToken]]:
    """Pieces with their scores, the unknown piece's id, and the pieces that no text gives."""
    if source == _TOKENIZER:
        vocab = [(piece, score) for piece, score in _model_of_type(files, "Unigram")["vocab"]]
        return vocab, int(files.json(_SETTINGS).get("unk_id", 1)), []
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(files.contents[source])
    except DecodeError as error:
        raise files.damaged(source, error) from error
    # The settings come last: a model without them is cut short.
    if not proto.pieces or not proto.HasField("trainer_spec"):
        raise UserError(f"{files.path / source} is damaged, or no SentencePiece model")
    if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM:
        raise UserError(f"{files.path / source} has to be a unigram model of SentencePiece")
    types = proto.SentencePiece
    controls = [
        AddedToken(piece.piece, normalized=False, special=piece.type == types.CONTROL)
        for piece in proto.pieces
        if piece.type in (types.CONTROL, types.USER_DEFINED)
    ]
    vocab = [(piece.piece, piece.score) for piece in proto.pieces]
    return vocab, proto.trainer_spec.unk_id, controls


def _unigram(vocab: list[tuple[str, float]], unk: int, settings: Mapping) -> tokenizers.Tokenizer:
    """What DebertaV2Tokenizer builds from a vocabulary."""
    unk_piece = _content(settings.get("unk_token", _DEFAULT_SPECIALS["unk_token"]))
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


def _added_tokens(files: _Files, source: str) -> tuple[dict[int, AddedToken], dict]:
    """The tokens that the files give ids, in order, and the special tokens that they name."""
    settings = files.json(_SETTINGS)
    given = {
        key: value
        for key, value in settings.items()
        if key in _DEFAULT_SPECIALS
        or (key.endswith("_token") and isinstance(value, str | dict))
        or key in _EXTRAS
    }
    added = {}
    name = _SETTINGS
    try:
        if "added_tokens_decoder" in settings:  # it replaces the files that came before it
            for token, entry in settings["added_tokens_decoder"].items():
                added[int(token)] = AddedToken(**entry)
            return dict(sorted(added.items())), given
        given.update(files.json(_SPECIAL))
        specials = {_content(value) for value in (*_named(given), *_extras(given))}
        name = _ADDED
        for content, token in files.json(_ADDED).items():
            special = content in specials
            added[int(token)] = AddedToken(content, special=special, normalized=not special)
        if source == _TOKENIZER:
            name = _TOKENIZER
            for entry in files.json(_TOKENIZER).get("added_tokens", ()):
                fields = {key: value for key, value in entry.items() if key != "id"}
                added[int(entry["id"])] = AddedToken(**fields)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise files.damaged(name, error) from error
    return dict(sorted(added.items())), given


def _add_tokens(
    backend: tokenizers.Tokenizer,
    added: Mapping[int, AddedToken],
    specials: Mapping,
    extras: Sequence,
) -> None:
    """Makes the added tokens, then those special ones that are not among them, `backend`'s."""
    named = _named(specials)
    contents = {_content(value) for value in named}
    tokens = list(added.values())
    for token in tokens:
        token.special = token.special or token.content in contents
    known = {token.content for token in tokens}
    known.update(token.content for token in backend.get_added_tokens_decoder().values())
    missing = [value for value in (*named, *extras) if _content(value) not in known]
    backend.add_tokens([*tokens, *map(_special_token, missing)])


def _named(specials: Mapping) -> list:
    """The special tokens that have a role, in the order of transformers."""
    roles = [*_DEFAULT_SPECIALS, *(key for key in specials if key not in _DEFAULT_SPECIALS)]
    values = [specials.get(role) for role in roles if role.endswith("_token")]
    return [value for value in values if value is not None]


def _extras(specials: Mapping) -> list:
    """The special tokens that have no role."""
    extras = next((specials[key] for key in _EXTRAS if specials.get(key)), ())
    return list(extras.values() if isinstance(extras, dict) else extras)


def _special_token(value: str | dict | AddedToken) -> AddedToken:
    if isinstance(value, dict):
        fields = {key: field for key, field in value.items() if key != "__type"}
        return AddedToken(**{**fields, "special": True})
    return AddedToken(value, special=True) if isinstance(value, str) else value


def _content(value) -> str:
    """The text of a special token: a string, an AddedToken, or the JSON object of one."""
    return str(value.get("content", "") if isinstance(value, dict) else value)


def _special_id(files: _Files, backend: tokenizers.Tokenizer, value, role: str) -> int:
    token = None if value is None else backend.token_to_id(_content(value))
    if token is None:
        raise UserError(f"{files.path / _SETTINGS} has to name a {role}_token")
    return token


def _template(specials: Mapping, special_ids: Mapping, kind: str) -> processors.TemplateProcessing:
    cls, sep = _content(specials["cls_token"]), _content(specials["sep_token"])
    between = [sep, sep] if kind == _V1 else [sep]
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
