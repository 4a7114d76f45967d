"""Checkpoint files: what torch and transformers write is read bit for bit, and nothing is run."""

import copyreg
import json
import os
import pickle
import re
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.interop.files import read_tensors, write_tensors

torch = pytest.importorskip("torch", reason="the parity extra is not installed")

FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}
DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64")
BIN = "pytorch_model.bin"


@pytest.fixture(params=FORMATS, ids=FORMATS)
def save(request, tmp_path):
    def save(state, name=BIN, **options):
        torch.save(state, tmp_path / name, **FORMATS[request.param], **options)

    return save


def random_state(seed):
    """A state dict with every dtype, a scalar, empty tensors, views and tied tensors."""
    torch.manual_seed(seed)
    state = {name: (50 * torch.randn(3, 5)).to(getattr(torch, name)) for name in DTYPES}
    whole = torch.randn(7, 6)
    return state | {
        "bool": torch.randn(9) > 0,
        "scalar": torch.randn(()),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(4)),
        "whole": whole,
        "transposed": whole.T,
        "offset": whole[2:, 1:4],
        "stepped": whole[::3, ::2],
        "column": whole[:, 5:],
        "expanded": torch.randn(2, 1).expand(2, 4),
    }


def bits(tensor):
    tensor = tensor.detach().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(arrays, state):
    assert arrays.keys() == state.keys()
    for name, tensor in state.items():
        assert arrays[name].shape == tuple(tensor.shape), name
        assert arrays[name].dtype == jnp.dtype(str(tensor.dtype).removeprefix("torch.")), name
        assert arrays[name].tobytes() == bits(tensor), name
        assert arrays[name].flags.aligned


def assert_same_arrays(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name


def refused(directory, message="."):
    """The error, which is one line and names a file."""
    with pytest.raises(UserError, match=message) as caught:
        read_tensors(directory)
    text = str(caught.value)
    assert str(directory) in text and text.isprintable(), text
    return text


# Plain files.


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_torch_files_are_read_bit_for_bit(save, protocol, seed, tmp_path):
    state = random_state(seed)
    save(state, pickle_protocol=protocol)
    arrays = read_tensors(tmp_path)
    assert_same(arrays, state)
    # Tied tensors stay tied, so that they do not cost memory twice.
    for name in ("transposed", "offset", "stepped", "column"):
        assert np.shares_memory(arrays[name], arrays["whole"])
    assert not np.shares_memory(arrays["float32"], arrays["whole"])


def test_dtypes_without_a_typed_storage_are_read(save, seed, tmp_path):
    rng = np.random.default_rng(seed)
    arrays = {f"uint{size}": rng.integers(0, 2**16, 7).astype(f"uint{size}") for size in (16, 64)}
    save({name: torch.from_numpy(array)[2:] for name, array in arrays.items()})
    assert_same_arrays(read_tensors(tmp_path), {name: a[2:] for name, a in arrays.items()})


def test_state_dict_of_a_module_is_read_without_its_metadata(save, seed, tmp_path):
    torch.manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    state = module.state_dict()
    assert state._metadata  # Which the opcode BUILD sets.
    save(state)
    assert_same(read_tensors(tmp_path), state)


@pytest.mark.parametrize("key", ["model", "state_dict", "module"])
def test_one_nested_dict_of_tensors_is_unwrapped(save, key, seed, tmp_path):
    state = random_state(seed)
    save({"step": 7, key: state, "options": {"rate": 1e-3, "names": ["a"]}, "none": None})
    assert_same(read_tensors(tmp_path), state)


def test_dicts_that_are_not_flat_are_refused(save, tmp_path):
    some = {"weight": torch.ones(2)}
    save({"model": some, "ema": some})
    refused(tmp_path, r"several dicts \(model, ema\)")
    save({"outer": {"model": some}})
    refused(tmp_path, "nowhere in outer")
    save(some | {"deeper": some})
    refused(tmp_path, "several dicts")
    save([torch.ones(2)])
    refused(tmp_path, "no dict of tensors")
    save({3: torch.ones(2)})
    refused(tmp_path, "names are no strings")


def test_deferred_negation_is_refused(save, tmp_path):
    negated = torch._neg_view(torch.ones(3))
    save({"weight": negated})
    refused(tmp_path, "deferred")


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_reading_does_not_copy(kind, seed, tmp_path):
    state = {"weight": torch.randn(100, 10)}
    if kind == "zip":
        torch.save(state, tmp_path / BIN)
    else:
        write_tensors({"weight": state["weight"].numpy()}, tmp_path)
    array = read_tensors(tmp_path)["weight"]
    while isinstance(array, np.ndarray):
        assert not array.flags.owndata and not array.flags.writeable
        array = array.base
    assert type(array).__name__ in ("mmap", "memoryview")


@pytest.mark.parametrize("shard", ["1GB", "40KB"])
def test_transformers_checkpoints_are_read(shard, seed, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.DebertaV2Config(
        vocab_size=120, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, relative_attention=True, pos_att_type=["c2p", "p2c"],
    )  # fmt: skip
    model = transformers.DebertaV2ForMaskedLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "40KB")
    arrays = read_tensors(tmp_path)
    state = model.state_dict()
    assert len(arrays) > 20
    assert_same(arrays, {name: state[name] for name in arrays})
    tied = {tensor.data_ptr() for name, tensor in state.items() if name in arrays}
    assert all(tensor.data_ptr() in tied for tensor in state.values())


def test_sharded_torch_checkpoints_are_read(save, seed, tmp_path):
    state = random_state(seed)
    names = list(state)
    halves = {"pytorch_model-1.bin": names[:8], "pytorch_model-2.bin": names[8:]}
    for file, half in halves.items():
        save({name: state[name] for name in half}, file)
    weight_map = {name: file for file, half in halves.items() for name in half}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same(read_tensors(tmp_path), state)


# Writing.


def random_arrays(seed):
    rng = np.random.default_rng(seed)
    arrays = {f"layer.{n}.{d}": rng.normal(size=(n + 1, 6)).astype(jnp.dtype(d))
              for n in range(6) for d in ("float32", "bfloat16", "float16", "float64")}  # fmt: skip
    arrays |= {"odd": rng.random(5) > 0.5, "scalar": np.float32(rng.normal())}
    arrays |= {"transposed": rng.normal(size=(4, 3)).T, "ids": rng.integers(0, 9, 4)}
    return arrays | {"empty": np.zeros((3, 0), np.float32)}


@pytest.mark.parametrize("max_bytes", [10**9, 300, 1])
def test_round_trip_is_exact(max_bytes, seed, tmp_path):
    arrays = random_arrays(seed)
    write_tensors(arrays, tmp_path / "new", max_bytes)
    assert_same_arrays(read_tensors(tmp_path / "new"), arrays)


def test_shards_are_those_of_hugging_face(seed, tmp_path):
    from safetensors import safe_open

    arrays = random_arrays(seed)
    write_tensors(arrays, tmp_path, 400)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    assert index["weight_map"].keys() == arrays.keys()
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    assert files == [
        f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))
    ]
    for file in files:
        with safe_open(tmp_path / file, framework="pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            held = [arrays[name].nbytes for name in shard.keys()]  # noqa: SIM118
            assert sum(held) <= 400 or len(held) == 1


def test_a_checkpoint_is_rewritten_in_place(seed, tmp_path):
    """Though the tensors lie in the files that are replaced; and nothing stale is left."""
    arrays = random_arrays(seed)
    for max_bytes in (10**9, 300, 200, 10**9, 10**9):
        write_tensors(arrays, tmp_path, max_bytes)
        arrays = read_tensors(tmp_path)
        index = tmp_path / "model.safetensors.index.json"
        files = {"model.safetensors"}
        if max_bytes < 10**9:
            files = {index.name, *json.loads(index.read_text())["weight_map"].values()}
        assert {path.name for path in tmp_path.iterdir()} == files
    assert_same_arrays(arrays, random_arrays(seed))


# What the user may get wrong.


def test_missing_weights_are_named(tmp_path):
    refused(tmp_path / "nowhere", "model.safetensors, model.safetensors.index.json, pytorch_model")
    torch.save({"weight": torch.ones(1)}, tmp_path / "pytorch_model.generator.bin")
    refused(tmp_path, "rename .* pytorch_model.generator.bin")


def test_safetensors_go_first(save, tmp_path):
    save({"weight": torch.zeros(1)})
    write_tensors({"weight": np.ones(1)}, tmp_path)
    assert read_tensors(tmp_path)["weight"] == 1


def test_wrong_indices_are_refused(seed, tmp_path):
    arrays = {name: np.ones(3) for name in "abc"}
    write_tensors(arrays, tmp_path, 30)
    index = tmp_path / "model.safetensors.index.json"
    right = index.read_text()
    second = "model-00002-of-00003.safetensors"

    index.write_text(right.replace('"b"', '"other"'))
    refused(tmp_path, f"{second} lacks 'other'")
    for wrong, message in {
        '{"weight_map": {"a": "../model.bin"}}': "no file name beside it",
        '{"weight_map": {"a": 3}}': "no file name beside it",
        '{"weight_map": {"a": ".."}}': "no file name|not there",
        '{"weight_map": []}': "has no weight_map",
        "[]": "has no weight_map",
        right[:-20]: "corrupt",
    }.items():
        index.write_text(wrong)
        refused(tmp_path, message)
    index.write_text(right)
    (tmp_path / second).write_bytes((tmp_path / second.replace("2", "1", 1)).read_bytes())
    refused(tmp_path, "holds 'a', as another shard does|lacks 'b'")
    (tmp_path / second).unlink()
    refused(tmp_path, f"names '{second}', which is not there")


@pytest.mark.parametrize("name", ["model.safetensors", BIN])
def test_other_files_are_refused(name, tmp_path):
    for content, message in {
        b"": "is empty",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "git lfs pull",
        b"<html>Not found</html>": "corrupt",
        b"\x80\x02K\x01.": "corrupt|not a file that torch.save wrote",
        b"PK\x03\x04": "corrupt",
    }.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path, message)


def test_a_zip_of_another_kind_is_refused(seed, tmp_path):
    with zipfile.ZipFile(tmp_path / BIN, "w") as archive:
        archive.writestr("archive/version", "3")
    refused(tmp_path, "without the data.pkl")
    with zipfile.ZipFile(tmp_path / BIN, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}) * 50)
    refused(tmp_path, "compressed")


# Malice. A pickle assembled by hand: an opcode a piece.

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\4tQ"


def text(value):
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def integer(value):
    return pickle.dumps(value, 2)[2:-1]


def numbers(*values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(offset=0, size=(2, 2), strides=(2, 1), storage=STORAGE, tail=b"\x89}"):
    shape = integer(offset) + numbers(*size) + numbers(*strides)
    return REBUILD + b"(" + storage + shape + tail + b"tR"


def entry(value, name="weight"):
    return text(name) + value + b"s"


def forge(directory, value, numel=4):
    """Writes {"fine": a tensor, "weight": value}, in both formats in turn."""
    body = b"\x80\x02}" + entry(tensor(), "fine") + entry(value) + b"."
    data = np.arange(numel, dtype=np.float32).tobytes()
    with zipfile.ZipFile(directory / BIN, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/data/0", data)
    yield
    body = body.replace(b"K\4tQ", b"K\4NtQ")
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [*(pickle.dumps(part, 2) for part in head), body, pickle.dumps(["0"], 2)]
    (directory / BIN).write_bytes(b"".join(parts) + numel.to_bytes(8, "little") + data)
    yield


def test_forged_files_are_otherwise_fine(tmp_path):
    for _ in forge(tmp_path, tensor(offset=1, size=(2,), strides=(2,))):
        np.testing.assert_array_equal(read_tensors(tmp_path)["weight"], [1, 3])
        np.testing.assert_array_equal(read_tensors(tmp_path)["fine"], [[0, 1], [2, 3]])


class Evil:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """Pickle asks that what it is to call can be."""


def attacks(sentinel):
    """What creates the sentinel when it is unpickled."""
    make, touch = f"open({str(sentinel)!r}, 'w')", (f"touch {sentinel}",)
    return {
        "system": Evil(os.system, touch),
        "eval": Evil(eval, (make,)),
        "exec": Evil(exec, (make,)),
        "open": Evil(open, (str(sentinel), "w")),
        "getattr": Evil(Evil(getattr, (Evil(__import__, ("os",)), "system")), touch),
        "dotted": Evil(Evil(torch._utils._import_dotted_name, ("os.system",)), touch),
    }


@pytest.mark.parametrize("attack", ["system", "eval", "exec", "open", "getattr", "dotted"])
def test_code_is_refused_and_not_run(save, attack, tmp_path):
    sentinel = tmp_path / "sentinel"
    evil = attacks(sentinel)[attack]
    pickle.loads(pickle.dumps(evil))
    assert sentinel.exists()  # It is an attack.
    sentinel.unlink()
    fine = {"weight": torch.ones(3)}
    for state in (fine | {"evil": evil}, {"model": fine, "evil": [(evil,)]}, {evil: 1} | fine):
        save(state)
        refused(tmp_path, r"holds code \(\w+(\.\w+)+\): not a plain checkpoint")
        assert not sentinel.exists()
    state = torch.nn.Linear(2, 2).state_dict()
    state._metadata = evil
    save(state)
    refused(tmp_path, "holds code")
    assert not sentinel.exists()


def test_code_in_the_small_pickles_of_a_legacy_file_is_refused(tmp_path):
    sentinel = tmp_path / "sentinel"
    evil = Evil(os.system, (f"touch {sentinel}",))
    magic, version = 0x1950A86A20F9469CFC6C, 1001
    system = {"little_endian": True}
    for parts in (
        [evil],
        [magic, evil],
        [magic, version, evil],
        [magic, version, system, {}, evil],
    ):
        (tmp_path / BIN).write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
        refused(tmp_path, "holds code")
        assert not sentinel.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os\nsystem",
        "torch\nload",
        "torch._utils\n_import_dotted_name",
        "torch._utils\n_rebuild_from_type_v2",
        "torch._utils\n__builtins__",
        "torch._utils\ntorch",
        "torch\nFloatStorage.__init__",
        "collections\nOrderedDict.__reduce__",
        "collections\nabc",
        "deberta_jax.interop.pickled\nread",
        "torch.storage\n_load_from_bytes",
    ],
)
def test_no_other_name_is_admitted(name, tmp_path):
    module, attribute = name.split("\n")
    ways = [
        b"c" + name.encode() + b"\n",
        b"\x8c" + bytes([len(module)]) + module.encode()
        + b"\x8c" + bytes([len(attribute)]) + attribute.encode() + b"\x93",
        b"(i" + name.encode() + b"\n",
    ]  # fmt: skip
    for way in ways:
        for _ in forge(tmp_path, way):
            assert re.search(re.escape(name.replace("\n", ".")), refused(tmp_path, "holds code"))


def test_attributes_by_a_dotted_path_are_not_followed(tmp_path):
    path = text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93"
    for _ in forge(tmp_path, path):
        refused(tmp_path, "holds code")


DTYPE = b"ctorch\nfloat16\n"
ORDERED = b"ccollections\nOrderedDict\n"
ATTRIBUTES = b"}" + text("_call") + text("x") + b"s" + text("items") + text("x") + b"s"


@pytest.mark.parametrize(
    "case",
    {
        "function changed": REBUILD + ATTRIBUTES + b"b",
        "function's slots changed": REBUILD + b"N" + ATTRIBUTES + b"\x86b",
        "dict's type changed": ORDERED + b"N" + ATTRIBUTES + b"\x86b",
        "dtype changed": DTYPE + b"N" + b"}" + text("name") + text("x") + b"s\x86b",
        "storage changed": STORAGE + ATTRIBUTES + b"b",
        "tensor changed": tensor() + ATTRIBUTES + b"b",
        "dtype called": DTYPE + b")R",
        "class made": ORDERED + b")\x81",
        "function made": REBUILD + b")\x81",
        "text called": text("os.system") + text("true") + b"\x85R",
        "no arguments": REBUILD + b")R",
        "no storage": tensor(storage=text("0")),
        "storage is a tensor": tensor(storage=tensor()),
        "sizes are text": REBUILD + b"(" + STORAGE + b"K\0X\1\0\0\0aX\1\0\0\0a\x89}tR",
        "entries are text": tensor(size=(2, "a")),
        "sizes are floats": tensor(size=(2.0, 2.0)),
        "sizes are bools": tensor(size=(True, True)),
        "more sizes than strides": tensor(size=(2, 2, 1)),
        "too many axes": tensor(size=(1,) * 70, strides=(1,) * 70),
        "parameter of text": b"ctorch._utils\n_rebuild_parameter\n(X\1\0\0\0a\x89}tR",
        "size of a number": b"ctorch\nSize\nK\3\x85R",
        "dict of a number": ORDERED + b"K\3\x85R",
        "other references": b"(X\6\0\0\0moduleK\0K\0K\0K\0tQ",
        "short reference": b"(X\7\0\0\0storagetQ",
        "storage of no dtype": b"(X\7\0\0\0storageX\1\0\0\0aX\1\0\0\0" + b"0NK\4tQ",
        "storage of no length": b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0NJ"
        + b"\xff" * 4 + b"tQ",
        "storage elsewhere": tensor(storage=STORAGE.replace(b"0X", b"9X")),
        "storage outside": tensor(
            storage=STORAGE.replace(b"X\1\0\0\0" + b"0X", text("../data.pkl") + b"X")
        ),
        "storage of two dtypes": tensor(storage=STORAGE.replace(b"Float", b"Half")),
        "extension": b"\x82\xf0",
        "huge memo": b"Nr\xff\xff\xff\xff",
        "huge memo in text": b"Np4000000000\n",
        "huge text": b"X\xff\xff\xff\xffabc",
        "huge bytes": b"\x8e" + b"\xff" * 7 + b"\x7fabc",
        "memo unset": b"h\x77",
    }.items(),
    ids=lambda item: item[0],
)  # fmt: skip
def test_evil_uses_of_what_is_admitted_are_refused(case, tmp_path, monkeypatch):
    # An object in this cache would reach the pickle past any check of names.
    monkeypatch.setitem(copyreg._extension_cache, 0xF0, os.system)
    for _ in forge(tmp_path, case[1]):
        refused(tmp_path)
    for _ in forge(tmp_path, tensor()):  # And nothing is left changed.
        assert read_tensors(tmp_path).keys() == {"fine", "weight"}


@pytest.mark.parametrize(
    "view",
    [
        dict(offset=1),
        dict(offset=4, size=(), strides=()),
        dict(offset=-1),
        dict(size=(5,), strides=(1,)),
        dict(size=(2, 2), strides=(3, 1)),
        dict(size=(2, 2), strides=(-1, 1)),
        dict(size=(-2, -2)),
        dict(size=(2,), strides=(2**62,)),
        dict(size=(2**62, 4), strides=(4, 1)),
        dict(size=(2**64 + 1,), strides=(1,)),
        dict(offset=2**63, size=(1,), strides=(1,)),
        dict(offset=2**100),
        dict(size=(2**70, 2**70), strides=(0, 0)),
    ],
    ids=str,
)
def test_views_outside_their_storage_are_refused(view, tmp_path):
    for _ in forge(tmp_path, tensor(**view)):
        refused(tmp_path, "corrupt|is no count")


def test_strides_that_are_never_taken_do_not_matter(tmp_path):
    for _ in forge(tmp_path, tensor(offset=3, size=(1, 1), strides=(2**80, 7))):
        np.testing.assert_array_equal(read_tensors(tmp_path)["weight"], [[3]])
    for _ in forge(tmp_path, tensor(offset=9, size=(0, 3), strides=(2**80, 7))):
        assert read_tensors(tmp_path)["weight"].shape == (0, 3)


@pytest.mark.parametrize("numel", [0, 3, 5])
def test_storages_of_another_length_are_refused(numel, tmp_path):
    for _ in forge(tmp_path, tensor(), numel):
        refused(tmp_path, "not as long as it says|truncated")


# Damage.


def damaged(data, rng, count):
    for _ in range(count):
        yield data[: rng.integers(len(data))]
        flipped = bytearray(data)
        for position in rng.integers(len(data), size=rng.integers(1, 4)):
            flipped[position] = rng.integers(256)
        yield bytes(flipped)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "evil zip", "evil legacy"])
def test_damaged_files_are_read_or_refused(kind, seed, tmp_path):
    sentinel = tmp_path / "sentinel"
    path = tmp_path / (BIN if kind != "safetensors" else "model.safetensors")
    state = {"a": torch.randn(3, 2), "b": torch.nn.Parameter(torch.randn(3).half())}
    if kind == "safetensors":
        write_tensors({name: value.detach().numpy() for name, value in state.items()}, tmp_path)
    elif kind.startswith("evil"):
        state["evil"] = Evil(os.system, (f"touch {sentinel}",))
    if path.name == BIN:
        torch.save(state, path, **FORMATS[kind.removeprefix("evil ")])
    data = path.read_bytes()
    if not kind.startswith("evil"):
        assert_same(read_tensors(tmp_path), state)
    rng = np.random.default_rng(seed)
    for content in damaged(data, rng, 60):
        # A new file each time: the arrays of the one before may still map theirs.
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        try:
            arrays = read_tensors(tmp_path)
        except UserError as error:
            assert str(error).isprintable()
            continue
        finally:
            assert not sentinel.exists()
        assert all(isinstance(name, str) for name in arrays)
        # Every element is within the file, so that adding them up does not crash.
        [array.astype(np.float32).sum() for array in arrays.values() if array.size < 10**6]
