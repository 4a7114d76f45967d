"""Writes tensors in the zip format of `torch.save`, without torch."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


def write_torch(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes a state dict that `torch.load(path, weights_only=True)` reads."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("archive/data.pkl", _pickled(tensors))
        archive.writestr("archive/byteorder", "little")
        for index, tensor in enumerate(tensors.values()):
            with archive.open(f"archive/data/{index}", "w", force_zip64=True) as entry:
                entry.write(np.ascontiguousarray(tensor).tobytes())
        archive.writestr("archive/version", "3\n")


def _pickled(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of a dict of tensors, written by opcodes: torch may not be installed."""
    out = io.BytesIO()
    out.write(pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK)
    for index, (name, tensor) in enumerate(tensors.items()):
        strides = [int(np.prod(tensor.shape[axis + 1 :])) for axis in range(tensor.ndim)]
        out.write(_text(name) + _global("torch._utils", "_rebuild_tensor_v2") + pickle.MARK)
        # The storage: a persistent id that names its type, its file, its device and its length.
        out.write(pickle.MARK + _text("storage"))
        out.write(_global("torch", _STORAGES[tensor.dtype.name]) + _text(str(index)))
        out.write(_text("cpu") + _integer(tensor.size) + pickle.TUPLE + pickle.BINPERSID)
        # Offset, size, stride, requires_grad, and hooks: none.
        out.write(_integer(0) + _tuple(tensor.shape) + _tuple(strides) + pickle.NEWFALSE)
        out.write(_global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE)
        out.write(pickle.TUPLE + pickle.REDUCE)
    out.write(pickle.SETITEMS + pickle.STOP)
    return out.getvalue()


def _text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _integer(value: int) -> bytes:
    encoded = int(value).to_bytes(9, "little", signed=True)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


def _tuple(values) -> bytes:
    return pickle.MARK + b"".join(map(_integer, values)) + pickle.TUPLE
