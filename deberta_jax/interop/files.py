"""The weights of a checkpoint directory, as transformers lays it out: tensors by their names.

Reading maps the files into memory: a tensor takes memory when it is used. torch is not needed, and
no code in a file is run.
"""

import contextlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from deberta_jax import storage
from deberta_jax.errors import UserError, listed
from deberta_jax.interop import pickled

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARDS = "model-?????-of-?????.safetensors"
# The first of these that is there is read.
_NAMES = (_SINGLE, _INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
# Pre-training by replaced token detection leaves two models; neither is taken for the other.
_HALVES = ("pytorch_model.discriminator.bin", "pytorch_model.generator.bin")

_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """The tensors of the checkpoint, in the shapes and dtypes of its files.

    The arrays are read-only and lie in the mapped files, which must not change while the
    arrays are in use. Those of a .bin file may be strided, and share memory where they are tied.

    Args:
        directory: holds one of `model.safetensors`, `model.safetensors.index.json`,
            `pytorch_model.bin`, `pytorch_model.bin.index.json`; the first of them is read.

    Raises:
        UserError: there is none of these, or one is corrupt, incomplete, or holds more than
            tensors.
    """
    directory = Path(directory)
    for name in _NAMES:
        path = directory / name
        if path.is_file():
            return _read_sharded(path) if path.suffix == ".json" else read_file(path)
    message = f"{directory} holds no weights: looked for {', '.join(_NAMES)}"
    halves = [name for name in _HALVES if (directory / name).is_file()]
    if halves:
        message += f"; rename the one that you mean of {', '.join(halves)} to pytorch_model.bin"
    raise UserError(message)


def holds_weights(directory: Path) -> bool:
    """Whether `read_tensors` has a file to read there."""
    return any((directory / name).is_file() for name in _NAMES)


def check_finite(tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Raises `UserError` where a tensor holds a NaN or an infinity: no model is made of it."""
    bad = [name for name, tensor in tensors.items() if not np.all(np.isfinite(tensor))]
    if bad:
        raise UserError(f"{source} holds values that are not finite, in {listed(bad, 'tensors')}")


def write_tensors(
    tensors: Mapping[str, np.ndarray], directory: Path, max_shard_bytes: int = 5 * 10**9
) -> None:
    """Writes `model.safetensors`, or its shards and their index where it would be too large.

    Safetensors weights that are there already are replaced, once the new ones are whole.

    Args:
        tensors: arrays by name, of any shapes; in a sharded checkpoint the order is kept.
        directory: is made if it is not there.
        max_shard_bytes: what a shard may hold; a larger tensor gets a shard of its own.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, max_shard_bytes)
    count = len(shards)
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    if count == 1:
        names = [_SINGLE]
    # Under temporary names at first: the tensors may lie in the very files that these replace.
    for name, shard in zip(names, shards, strict=True):
        rows = {key: np.asarray(tensor, order="C") for key, tensor in shard.items()}
        save_file(rows, directory / f"{name}.part", metadata={"format": "pt"})
    for name in names:
        os.replace(directory / f"{name}.part", directory / name)
    if count > 1:
        _write_index(directory, dict(zip(names, shards, strict=True)))
    superseded = {_SINGLE, _INDEX, *(path.name for path in directory.glob(_SHARDS))}
    for name in superseded - set(names) - ({_INDEX} if count > 1 else set()):
        (directory / name).unlink(missing_ok=True)


def _shards(tensors: Mapping[str, np.ndarray], max_bytes: int) -> list[dict[str, np.ndarray]]:
    shards: list[dict[str, np.ndarray]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        if shards[-1] and held + tensor.nbytes > max_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    return shards


def _write_index(directory: Path, shards: dict[str, dict[str, np.ndarray]]) -> None:
    sizes = [tensor.nbytes for shard in shards.values() for tensor in shard.values()]
    index = {
        "metadata": {"total_size": sum(sizes)},
        "weight_map": {name: file for file, shard in shards.items() for name in shard},
    }
    storage.write_json(directory / _INDEX, index)


def _read_sharded(index: Path) -> dict[str, np.ndarray]:
    weight_map = _weight_map(index)
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(weight_map.values())):
        path = index.parent / file
        if not path.is_file():
            raise UserError(f"{index} names {file!r}, which is not there: fetch it, too")
        shard = read_file(path)
        for name in shard:
            if name in tensors:
                raise UserError(f"{path} holds {name!r}, as another shard does: one must go")
        for name, promised in weight_map.items():
            if promised == file and name not in shard:
                raise UserError(
                    f"{path} lacks {name!r}, which {index.name} promises: fetch it anew"
                )
        tensors |= shard
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """File names by tensor name."""
    with _blaming(index):
        content = json.loads(index.read_text(encoding="utf-8"))
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map, from tensor names to file names")
    for file in weight_map.values():
        # A file elsewhere is none of this checkpoint's.
        if not isinstance(file, str) or "\0" in file or Path(file).name != file:
            raise UserError(f"{index} names {str(file)[:100]!r}, which is no file name beside it")
    return weight_map


def read_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one `.safetensors` file, or of one that `torch.save` wrote; as `read_tensors`.

    Raises:
        UserError: it is corrupt, or holds more than tensors.
    """
    with _blaming(path):
        if path.stat().st_size == 0:
            raise UserError("is empty: fetch it anew")
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if data[:23] == b"version https://git-lfs":
            raise UserError("is a pointer of Git LFS, not the weights: run `git lfs pull`")
        if path.suffix == ".safetensors":
            return _read_safetensors(path, data)
        return pickled.read(data)


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turns any error about a file's content into a `UserError` that names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except Exception as error:  # Parsing bytes that may be anything can raise anything.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        reason = reason if reason.isprintable() else ascii(reason)
        message = f"{path} cannot be read: corrupt, truncated or of another format ({reason})"
        raise UserError(message) from error


def _read_safetensors(path: Path, data: mmap.mmap) -> dict[str, np.ndarray]:
    # The library refuses a header that does not tile the file exactly. It does not give NumPy
    # bfloat16, nor memory that is not copied.
    with safe_open(path, framework="np"):
        pass
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {name: _safetensor(name, entry, data, start) for name, entry in header.items()}


def _safetensor(name: str, entry: dict, data: mmap.mmap, start: int) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise UserError(f"holds {name!r} in {entry['dtype']}, but read are {', '.join(_DTYPES)}")
    tensor = np.ndarray(
        entry["shape"], _DTYPES[entry["dtype"]], data, start + entry["data_offsets"][0]
    )
    return np.require(tensor, requirements="A")
