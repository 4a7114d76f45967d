"""The SentencePiece model of a tokenizer, from any of the files that people hold one in."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from deberta_jax import storage
from deberta_jax.data.nested import transformer_folder
from deberta_jax.errors import UserError

_TOKENIZER, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
# The folder of a run's tokenizer, and of that of prepared data.
_OF_A_RUN = "tokenizer"
_MODELS = ("spm.model", "spiece.model")
# Settings under which a text is other pieces than the model alone makes of it.
_PLAIN = {"do_lower_case": False, "split_by_punct": False, "add_prefix_space": True}


def read_model(path: Path, mask_piece: str) -> bytes:
    """The bytes of a SentencePiece model.

    `path` is the model; `tokenizer.json` of a unigram tokenizer, as transformers saves it; or a
    directory with either, such as a checkpoint's or a run's. A model that is made of
    `tokenizer.json` has its pieces, scores and ids. Tokens that were added to those of the model
    are none of it, but for the mask: their text is cut into pieces.

    Args:
        path: the file or directory.
        mask_piece: the added token that takes the id after the last piece.

    Raises:
        UserError: there is no unigram model, it is damaged, or it is used in another way.
    """
    if path.is_dir():
        return _of_directory(path, mask_piece)
    return _of_json(path, mask_piece) if path.suffix == ".json" else _read(path)


def holds_model(directory: Path) -> bool:
    """Whether `read_model` has a file to read there."""
    folder = transformer_folder(directory)
    return any((folder / name).is_file() for name in (*_MODELS, _TOKENIZER))


def added_tokens(path: Path, mask_piece: str) -> list[str]:
    """The tokens that were added behind the mask, which `read_model` leaves out."""
    folder = transformer_folder(path) if path.is_dir() else path.parent
    own = path if path.suffix == ".json" else folder / _TOKENIZER
    if not own.is_file() or path.is_file() != (own == path):
        return []
    content = _json(own)
    tokens, pieces = content.get("added_tokens", ()), len(content["model"]["vocab"])
    return [t["content"] for t in tokens if t["id"] >= pieces and t["content"] != mask_piece]


def _of_directory(directory: Path, mask_piece: str) -> bytes:
    directory = transformer_folder(directory)
    if not holds_model(directory) and holds_model(directory / _OF_A_RUN):
        directory /= _OF_A_RUN
    if not holds_model(directory):
        raise UserError(
            f"tokenizer {directory} has neither spm.model nor {_TOKENIZER}; data is prepared with "
            "unigram tokenizers, those of DeBERTa v2 and v3"
        )
    if (directory / _SETTINGS).is_file():
        _check_settings(directory / _SETTINGS)
    own = directory / _TOKENIZER
    made = _of_json(own, mask_piece) if own.is_file() else None
    for name in _MODELS:
        if not (directory / name).is_file():
            continue
        model = _read(directory / name)
        # transformers reads tokenizer.json where there is one.
        if made is not None and _pieces(made, own) != _pieces(model, directory / name):
            raise UserError(
                f"{own} and {directory / name} hold different pieces; remove the one of another "
                "tokenizer"
            )
        return model
    assert made is not None
    return made


def _check_settings(path: Path) -> None:
    settings = _json(path)
    for name, plain in _PLAIN.items():
        if (value := settings.get(name, plain)) is not None and value != plain:
            raise UserError(
                f"{path} has {name} {value!r}; data is prepared with {plain!r} only, as in DeBERTa "
                "v2 and v3"
            )


def _of_json(path: Path, mask_piece: str) -> bytes:
    """A model with the pieces of `tokenizer.json`, as SentencePiece would have written it."""
    content = _json(path)
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), list):
        kind = model.get("type", "other") if isinstance(model, dict) else "other"
        raise UserError(
            f"{path} holds a tokenizer of type {kind}; data is prepared with unigram ones, those "
            "of DeBERTa v2 and v3"
        )
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it
    try:
        added = {entry["content"]: entry for entry in content.get("added_tokens", ())}
        for place, (piece, score) in enumerate(model["vocab"]):
            kind = _kind(proto.SentencePiece, place == model.get("unk_id"), added.get(piece))
            proto.pieces.add(piece=piece, score=score, type=kind)
        mask_id = added.get(mask_piece, {}).get("id", len(proto.pieces))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if mask_id != len(proto.pieces):
        raise UserError(
            f"{path}: {mask_piece} has the id {mask_id}; it has to follow the last piece, as "
            f"{len(proto.pieces)}"
        )
    spec, normalizer = proto.trainer_spec, proto.normalizer_spec
    spec.model_type, spec.vocab_size = spec.UNIGRAM, len(proto.pieces)
    spec.unk_id = model.get("unk_id") or 0
    spec.unk_piece = proto.pieces[spec.unk_id].piece
    normalizer.name, normalizer.add_dummy_prefix = "identity", True
    normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = False, True
    return proto.SerializeToString(deterministic=True)


def _kind(kinds: Any, is_unknown: bool, added: dict | None) -> int:
    """A piece's type; of those that no text gives, the added token says which it is."""
    if is_unknown:
        return kinds.UNKNOWN
    if added is None:
        return kinds.NORMAL
    return kinds.CONTROL if added.get("special") else kinds.USER_DEFINED


def _pieces(model: bytes, path: Path) -> Sequence[str]:
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(model)
    except Exception as error:  # protobuf raises one kind or another, by its implementation
        raise UserError(f"{path} is no SentencePiece model, or a damaged one") from error
    return [piece.piece for piece in proto.pieces]


def _json(path: Path) -> dict:
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} has to hold a JSON object")
    return content


def _read(path: Path) -> bytes:
    try:
        return storage.read_bytes(path)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        reason = f"{reason[0].upper()}{reason[1:]}"
        raise UserError(f"tokenizer {path} cannot be read: {reason}") from error
