"""The files of a released tokenizer: which there are, what they hold, and what they lack."""

import json
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, models

from deberta_jax.data.nested import transformer_folder
from deberta_jax.errors import UserError

TOKENIZER = "tokenizer.json"
SENTENCEPIECE = ("spm.model", "spiece.model")
VOCAB, MERGES = "vocab.json", "merges.txt"
SETTINGS = "tokenizer_config.json"
ADDED = "added_tokens.json"
SPECIAL = "special_tokens_map.json"
CONFIG = "config.json"
_VOCABULARIES = (TOKENIZER, *SENTENCEPIECE, VOCAB, MERGES)
# What a copy of the tokenizer has, beside its settings.
SAVED = (*_VOCABULARIES, ADDED, SPECIAL)

V1, V2 = "DebertaTokenizer", "DebertaV2Tokenizer"
# tokenizer.json is the whole tokenizer, to be taken as it is.
GENERIC = "PreTrainedTokenizerFast"
_GENERIC_NAMES = (GENERIC, "PreTrainedTokenizer", "TokenizersBackend")
_NEEDED = {
    V1: f"{TOKENIZER}, or {VOCAB} and {MERGES}",
    V2: f"{TOKENIZER} or spm.model",
    GENERIC: TOKENIZER,
}
_CLASS_OF_MODEL = {"deberta": V1, "deberta-v2": V2}

# In transformers' order, which decides the ids of those that the vocabulary lacks.
DEFAULT_SPECIALS = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_EXTRAS = ("extra_special_tokens", "additional_special_tokens")


class TokenizerFiles:
    """What a directory holds of a tokenizer.

    Attributes:
        path: the directory.
        contents: its files, by name.
    """

    def __init__(self, path: Path):
        """Raises `UserError` where there is no directory, or a file cannot be read."""
        if not path.is_dir():
            raise UserError(f"tokenizer directory {path} does not exist")
        self.path = path = transformer_folder(path)
        self.contents: dict[str, bytes] = {}
        for name in (*SAVED, SETTINGS, CONFIG):
            try:
                self.contents[name] = (path / name).read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UserError(f"{path / name} cannot be read: {error.strerror}") from error
        if "spm.model" in self.contents:
            self.contents.pop("spiece.model", None)
        self._objects: dict[str, dict] = {}

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
        """The error to raise of a file that could not be parsed."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return UserError(f"{self.path / name} is damaged ({reason}); restore it")

    def to_save(self) -> dict[str, bytes]:
        """The files that a copy of the tokenizer has, by the names that are read first."""
        return {
            SENTENCEPIECE[0] if name in SENTENCEPIECE else name: content
            for name, content in self.contents.items()
            if name in SAVED
        }


def has_vocabulary(directory: Path) -> bool:
    """Whether `TokenizerFiles` of the directory hold a vocabulary."""
    return any((directory / name).is_file() for name in _VOCABULARIES)


def class_name(files: TokenizerFiles) -> str:
    """The transformers class that AutoTokenizer picks, without the old suffix "Fast"."""
    config = files.json(CONFIG)
    name = (
        files.json(SETTINGS).get("tokenizer_class")
        or config.get("tokenizer_class")
        or _CLASS_OF_MODEL.get(config.get("model_type", ""))
    )
    if not name and TOKENIZER in files.contents:
        name = V2 if _model(files).get("type") == "Unigram" else V1
    elif not name:
        name = V2 if any(file in files.contents for file in SENTENCEPIECE) else V1
    if name in _GENERIC_NAMES:
        return GENERIC
    if (name := str(name).removesuffix("Fast")) not in _NEEDED:
        raise UserError(
            f"{files.path}: a tokenizer of class {name} is not supported; "
            f"it has to be {V1}, {V2} or {GENERIC}"
        )
    return name


def vocabulary_file(files: TokenizerFiles, kind: str) -> str:
    """The name of the file that a tokenizer of this class takes its vocabulary from."""
    candidates = {V1: (TOKENIZER, VOCAB), V2: (TOKENIZER, *SENTENCEPIECE)}
    for name in candidates.get(kind, (TOKENIZER,)):
        if name in files.contents:
            return name
    if any(name in files.contents for name in _VOCABULARIES):
        what = f"{files.path} has no vocabulary of a {kind}"
        raise UserError(f"{what}; it has to hold {_NEEDED[kind]}")
    what = f"{files.path} has no tokenizer"
    if (files.path / "bpe_encoder.bin").exists():
        what += " that is supported (bpe_encoder.bin is not)"
    raise UserError(f"{what}; it has to hold {TOKENIZER}, spm.model, or {VOCAB} and {MERGES}")


def _model(files: TokenizerFiles) -> dict:
    model = files.json(TOKENIZER).get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise UserError(f"{files.path / TOKENIZER} is damaged: it has no vocabulary")
    return model


def _model_of_type(files: TokenizerFiles, model_type: str) -> dict:
    model = _model(files)
    if model.get("type", model_type) != model_type:
        raise UserError(
            f"{files.path / TOKENIZER} holds a {model['type']} model; "
            f"for this class of tokenizer it has to be {model_type}"
        )
    return model


def vocab_and_merges(
    files: TokenizerFiles, source: str
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The ids of a byte-level vocabulary's pieces, and its merges."""
    if source == TOKENIZER:
        model = _model_of_type(files, "BPE")
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        return model["vocab"], list(map(tuple, pairs))
    if MERGES not in files.contents:
        raise UserError(f"{files.path / MERGES} is missing; {VOCAB} needs it")
    return models.BPE.read_file(str(files.path / VOCAB), str(files.path / MERGES))


def scored_vocab(
    files: TokenizerFiles, source: str
) -> tuple[list[tuple[str, float]], int, list[AddedToken]]:
    """Pieces with their scores, the unknown piece's id, and the pieces that no text gives."""
    if source == TOKENIZER:
        vocab = [(piece, score) for piece, score in _model_of_type(files, "Unigram")["vocab"]]
        return vocab, int(files.json(SETTINGS).get("unk_id", 1)), []
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it
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


def special_tokens(files: TokenizerFiles) -> dict:
    """The special tokens that the settings name, by role: text, or the JSON of an AddedToken."""
    settings = files.json(SETTINGS)
    specials = {
        key: value
        for key, value in settings.items()
        if key in DEFAULT_SPECIALS
        or (key.endswith("_token") and isinstance(value, str | dict))
        or key in _EXTRAS
    }
    if "added_tokens_decoder" not in settings:  # it replaces the files that came before it
        specials.update(files.json(SPECIAL))
    return specials


def added_tokens(files: TokenizerFiles, source: str, specials: Mapping) -> dict[int, AddedToken]:
    """The tokens that the files give ids, in the order of these.

    Args:
        files: the directory's.
        source: the vocabulary's file.
        specials: from `special_tokens`.

    Raises:
        UserError: an entry is no token; the message names its file.
    """
    settings = files.json(SETTINGS)
    added = {}
    name = SETTINGS
    try:
        if "added_tokens_decoder" in settings:
            for token, entry in settings["added_tokens_decoder"].items():
                added[int(token)] = AddedToken(**entry)
            return dict(sorted(added.items()))
        texts = {token_text(value) for value in (*with_role(specials), *without_role(specials))}
        name = ADDED
        for text, token in files.json(ADDED).items():
            special = text in texts
            added[int(token)] = AddedToken(text, special=special, normalized=not special)
        if source == TOKENIZER:
            name = TOKENIZER
            for entry in files.json(TOKENIZER).get("added_tokens", ()):
                fields = {key: value for key, value in entry.items() if key != "id"}
                added[int(entry["id"])] = AddedToken(**fields)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise files.damaged(name, error) from error
    return dict(sorted(added.items()))


def with_role(specials: Mapping) -> list:
    """The special tokens that have a role, in the order of transformers."""
    roles = [*DEFAULT_SPECIALS, *(key for key in specials if key not in DEFAULT_SPECIALS)]
    values = [specials.get(role) for role in roles if role.endswith("_token")]
    return [value for value in values if value is not None]


def without_role(specials: Mapping) -> list:
    """The special tokens that have no role."""
    extras = next((specials[key] for key in _EXTRAS if specials.get(key)), ())
    return list(extras.values() if isinstance(extras, dict) else extras)


def token_text(value) -> str:
    """The text of a special token: a string, an AddedToken, or the JSON object of one."""
    return str(value.get("content", "") if isinstance(value, dict) else value)
