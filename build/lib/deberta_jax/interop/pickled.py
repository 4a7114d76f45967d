"""Reads the tensors of a file that `torch.save` wrote, without torch and without running its code.

A pickle is a program: it names functions and calls them. Here a name is looked up in the table
`_ADMITTED` of our own functions and constants, which only record what they are called with; any
other name is refused before anything is called. The recorded tensors are then checked and mapped
from the file. Both formats are read: zip (torch >= 1.6) and the plain pickles before it.

Every error message is a predicate of the file ("holds code ..."): the caller puts its name first.
"""

import io
import mmap
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

from deberta_jax.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_REMEDY = "load it where you trust it, and save its state_dict alone as model.safetensors"

# An untyped storage counts bytes.
_DTYPES = {
    "untyped": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "uint8": np.dtype(np.uint8),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
    "int8": np.dtype(np.int8),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
_STORAGES = {
    "UntypedStorage": "untyped",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
}


def read(data: mmap.mmap) -> dict[str, np.ndarray]:
    """The tensors of a whole file, by name: read-only, as they lie in it, tied ones still tied.

    Raises:
        UserError: the file holds anything but plain tensors, or contradicts itself. Other
            exceptions mean a corrupt file, too: the pickle and zip modules raise nearly anything.
    """
    if data[:4] == b"PK\x03\x04":
        state, storages = _read_zip(data)
    elif data[257:262] == b"ustar":
        raise UserError(f"is in the tar format of torch < 0.1.10, which is not read: {_REMEDY}")
    else:
        state, storages = _read_legacy(data)
    return {name: _array(name, tensor, storages) for name, tensor in _flat(state).items()}


# What unpickling may leave behind. A pickle can set attributes of any object that it can reach
# (the opcode BUILD), so these have none to set, and it never reaches a class, a function or a
# numpy.dtype.


class _Dtype(NamedTuple):
    name: str


class _Storage(NamedTuple):
    key: str
    dtype: str
    numel: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    dtype: str
    offset: int
    size: tuple[int, ...]
    strides: tuple[int, ...]


class _Dict(dict):
    """An OrderedDict whose attributes, such as `_metadata`, are dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Function:
    """What a pickle gets to call."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable):
        self._call = call

    def __call__(self, *args):
        return self._call(*args)

    def __setstate__(self, state: object) -> None:
        raise UserError("changes a function: it is no plain checkpoint")


def _is_count(value) -> bool:
    return type(value) is int and value >= 0


def _rebuild_tensor(storage, offset, size, strides) -> _Tensor:
    shapes = isinstance(size, tuple) and isinstance(strides, tuple) and len(size) == len(strides)
    if not (isinstance(storage, _Storage) and shapes):
        raise UserError("describes a tensor in a way that torch does not")
    if not all(map(_is_count, (offset, *size, *strides))):
        raise UserError("describes a tensor with a size, stride or offset that is no count")
    return _Tensor(storage, storage.dtype, offset, size, strides)


def _rebuild_tensor_v2(storage, offset, size, strides, _grad, _hooks, metadata=None) -> _Tensor:
    if metadata:  # The marks of a negated or conjugated view, whose data say something else.
        raise UserError(f"holds a tensor with deferred arithmetic: {_REMEDY}")
    return _rebuild_tensor(storage, offset, size, strides)


def _rebuild_tensor_v3(storage, offset, size, strides, grad, hooks, dtype, metadata=None):
    if not isinstance(dtype, _Dtype):
        raise UserError("describes a tensor whose dtype is none")
    tensor = _rebuild_tensor_v2(storage, offset, size, strides, grad, hooks, metadata)
    return tensor._replace(dtype=dtype.name)


def _rebuild_parameter(tensor, _grad, _hooks) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise UserError("describes a parameter that is no tensor")
    return tensor


_ADMITTED = {
    ("collections", "OrderedDict"): _Function(_Dict),
    ("torch", "Size"): _Function(tuple),
    ("torch._utils", "_rebuild_tensor"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor_v2),
    ("torch._utils", "_rebuild_tensor_v3"): _Function(_rebuild_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    **{("torch", name): _Dtype(name) for name in _DTYPES if name != "untyped"},
    **{
        (module, name): _Dtype(dtype)
        for module in ("torch", "torch.cuda", "torch.storage")
        for name, dtype in _STORAGES.items()
    },
}


class _Unpickler(pickle.Unpickler):
    """Attributes: storages: every storage that the pickle names, by key."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, encoding="utf-8")  # Strings of Python 2, as torch reads them.
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str):
        if (module, name) not in _ADMITTED:
            raise UserError(
                f"holds code ({_shown(f'{module}.{name}')}): not a plain checkpoint, and nothing "
                f"of it was run; {_REMEDY}"
            )
        return _ADMITTED[module, name]

    def persistent_load(self, pid: object) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
            raise UserError(f"refers to more than storages: {_REMEDY}")
        _, dtype, key, _, numel, *view = pid
        if any(part is not None for part in view):
            raise UserError(f"holds views of storages, as torch < 0.4 wrote them: {_REMEDY}")
        if not (isinstance(dtype, _Dtype) and type(key) is str and _is_count(numel)):
            raise UserError("describes a storage in a way that torch does not")
        storage = _Storage(key, dtype.name, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise UserError(f"describes its storage {_shown(key)} in two ways")
        return storage


def _next_pickle(file) -> bytes:
    """The pickle at the file's position, which moves behind it.

    Parsing it whole first finds its end, and keeps two things from the C unpickler that
    `find_class` does not see: objects out of the process's extension cache, and memo indices that
    make it allocate gigabytes.
    """
    start = file.tell()
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name.startswith("EXT"):
            raise UserError("holds code (a copyreg extension): not a plain checkpoint")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > position - start:
            raise UserError("is corrupt: its pickle numbers more objects than it has")
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


def _unpickle(pickled: bytes) -> tuple[object, dict[str, _Storage]]:
    unpickler = _Unpickler(io.BytesIO(pickled))
    return unpickler.load(), unpickler.storages


def _read_zip(data: mmap.mmap) -> tuple[object, dict[str, np.ndarray]]:
    entries = _zip_entries(data)
    roots = [name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UserError("is a zip file without the data.pkl that torch.save writes")
    (root,) = roots
    if bytes(entries.get(f"{root}byteorder", b"little")) != b"little":
        raise UserError(f"was written on a big-endian machine: {_REMEDY}")
    state, described = _unpickle(_next_pickle(io.BytesIO(entries[f"{root}data.pkl"])))
    storages = {}
    for key, storage in described.items():
        if f"{root}data/{key}" not in entries:
            raise UserError(f"is corrupt: it lacks its storage {_shown(key)}")
        storages[key] = _storage_bytes(storage, entries[f"{root}data/{key}"])
    return state, storages


def _zip_entries(data: mmap.mmap) -> dict[str, memoryview]:
    """Every entry of the archive, where it lies in the file: torch does not compress.

    The checksums are not checked: torch has a setting that leaves them out.
    """
    with zipfile.ZipFile(data) as archive:  # type: ignore[call-overload]  # a map reads like a file
        infos = archive.infolist()
    entries = {}
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise UserError(f"is compressed, as torch.save never does: {_REMEDY}")
        header = _cut(data, info.header_offset, 30)
        if header[:4] != b"PK\x03\x04":
            raise UserError("is corrupt: its zip directory points astray")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name_length + extra_length
        entries[info.filename] = _cut(data, start, info.file_size)
    return entries


def _read_legacy(data: mmap.mmap) -> tuple[object, dict[str, np.ndarray]]:
    data.seek(0)
    magic, _ = _unpickle(_next_pickle(data))
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise UserError("is not a file that torch.save wrote")
    _unpickle(_next_pickle(data))  # The protocol's version: there has only been one.
    system, _ = _unpickle(_next_pickle(data))
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise UserError(f"was written on a big-endian machine: {_REMEDY}")
    state, described = _unpickle(_next_pickle(data))
    keys, _ = _unpickle(_next_pickle(data))
    if not isinstance(keys, list) or set(keys) != set(described) or len(keys) != len(described):
        raise UserError("is corrupt: its list of storages is not that of its tensors")
    storages = {}
    start = data.tell()
    for key in keys:
        storage = described[key]
        if struct.unpack("<q", _cut(data, start, 8)) != (storage.numel,):
            raise UserError(f"is corrupt: its storage {_shown(key)} is not as long as it says")
        length = storage.numel * _DTYPES[storage.dtype].itemsize
        storages[key] = _storage_bytes(storage, _cut(data, start + 8, length))
        start += 8 + length
    return state, storages


def _cut(data: mmap.mmap, start: int, length: int) -> memoryview:
    if start < 0 or length < 0 or start + length > len(data):
        raise UserError("is truncated")
    return memoryview(data)[start : start + length]


def _storage_bytes(storage: _Storage, raw: memoryview) -> np.ndarray:
    """The storage as uint8 [bytes], copied only where it is not aligned in the file."""
    if len(raw) != storage.numel * _DTYPES[storage.dtype].itemsize:
        raise UserError(f"is corrupt: its storage {_shown(storage.key)} is not as long as it says")
    stored = np.ndarray((len(raw),), np.uint8, raw)
    if stored.ctypes.data % 8:
        stored = stored.copy()
        stored.setflags(write=False)
    return stored


def _flat(state) -> dict[str, _Tensor]:
    """The tensors of the state dict, or of the one dict of tensors in it; the rest is dropped."""
    if not isinstance(state, dict):
        raise UserError(f"holds no dict of tensors by their names: {_REMEDY}")
    tensors = {name: value for name, value in state.items() if isinstance(value, _Tensor)}
    nested = {name: value for name, value in state.items() if _holds_tensors(value)}
    if not tensors and len(nested) == 1:
        return _flat(*nested.values())
    if not tensors or nested:
        where = f"in several dicts ({_keys(nested)})" if nested else f"nowhere in {_keys(state)}"
        raise UserError(f"holds its tensors {where}, but one flat dict of them is read: {_REMEDY}")
    if not all(type(name) is str for name in tensors):
        raise UserError(f"holds tensors whose names are no strings: {_REMEDY}")
    return tensors


def _holds_tensors(value) -> bool:
    return isinstance(value, dict) and any(isinstance(entry, _Tensor) for entry in value.values())


def _array(name: str, tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    """The view of its storage that the tensor is."""
    dtype = _DTYPES[tensor.dtype]
    storage = storages[tensor.storage.key]
    if 0 in tensor.size:
        return np.empty(tensor.size, dtype)
    steps = [(size - 1) * stride for size, stride in zip(tensor.size, tensor.strides, strict=True)]
    if tensor.offset + sum(steps) >= len(storage) // dtype.itemsize:
        raise UserError(f"is corrupt: its tensor {_shown(name)} reaches outside its storage")
    # The stride of an axis of one entry is never taken, and may be anything.
    strides = [
        stride * dtype.itemsize if size > 1 else dtype.itemsize
        for size, stride in zip(tensor.size, tensor.strides, strict=True)
    ]
    return np.ndarray(tensor.size, dtype, storage, tensor.offset * dtype.itemsize, strides)


def _shown(text: str) -> str:
    """Text out of the file, fit for one line of a terminal."""
    return text[:100] if text.isprintable() else ascii(text[:100])


def _keys(state: dict) -> str:
    names = [_shown(name) for name in state if isinstance(name, str)]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "an empty dict"
