"""Every layout of released files: read, written, converted; every tensor accounted for."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax.errors import UserError
from deberta_jax.interop import layouts, pretrained
from deberta_jax.interop.files import read_tensors, write_tensors
from deberta_jax.interop.released import Released
from deberta_jax.model.heads import DebertaForMaskedLM
from tests.interop import released
from tests.interop.released import FAMILIES, torch, transformers
from tests.model import small
from tests.model.small import VARIANTS

ROOT = Path(__file__).parents[2]
# The fixture's file has both heads; as a masked LM it is read by whoever leaves the other out.
ONE_BODY = {"ignore": ["mask_predictions."]}


def assert_same(left, right):
    """Equal names, types, shapes and bits."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert np.array_equal(tensor, right[name]), name


@pytest.fixture
def checkpoint(seed, tmp_path):
    """A released v3 file with every head beside the encoder: (directory, its tensors)."""
    theirs = released.make("v3", "ForMaskedLM", seed)
    theirs.save_pretrained(tmp_path / "released")
    rng = np.random.default_rng(seed)
    tensors = dict(read_tensors(tmp_path / "released"))
    extra = {
        "deberta.embeddings.position_embeddings.weight": (512, 64),
        "mask_predictions.LayerNorm.weight": (64,),
        "mask_predictions.LayerNorm.bias": (64,),
        "mask_predictions.dense.weight": (64, 64),
        "mask_predictions.dense.bias": (64,),
        "mask_predictions.classifier.weight": (1, 64),
        "mask_predictions.classifier.bias": (1,),
    }
    for name, shape in extra.items():
        tensors[name] = rng.normal(size=shape).astype(np.float32)
    write_tensors(tensors, tmp_path / "released")
    return tmp_path / "released", tensors


def last_hidden(directory, **options):
    model, params = deberta_jax.load_pretrained(directory, **options)
    ids, mask = released.padded(0, 16)
    return np.asarray(jax.jit(model.apply)({"params": params}, ids, mask))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_parameters_survive_the_way_out_and_in(options, seed):
    config = small.variant(**options)
    params, model = small.random_params(config, seed), DebertaForMaskedLM(config)
    back = pretrained.from_state_dict(model, pretrained.to_state_dict(model, params))
    jax.tree.map(np.testing.assert_array_equal, params, back)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_comes_back_bit_for_bit_and_transformers_reads_it(family, dtype, seed, tmp_path):
    theirs = released.make(family, "ForMaskedLM", seed).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = deberta_jax.load_pretrained(tmp_path / "theirs", "masked_lm")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    names = {"dtype": dtype, "head_names": "lm_predictions"}
    deberta_jax.save_pretrained(tmp_path / "ours", model, params, **names)
    assert_same(read_tensors(tmp_path / "theirs"), read_tensors(tmp_path / "ours"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, info = transformers.AutoModelForMaskedLM.from_pretrained(
            tmp_path / "ours", output_loading_info=True
        )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for (name, ours), want in zip(again.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours.to(want.dtype), want), name


def test_old_names_mean_the_same(checkpoint, tmp_path):
    """The `bert.` prefix, gamma and beta, buffers, and GDES's delta beside its sum."""
    directory, tensors = checkpoint
    old = {}
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        old[name.replace("deberta.", "bert.", 1)] = tensor
    words = old["bert.embeddings.word_embeddings.weight"]
    old["bert.embeddings.word_embeddings._weight"] = np.full_like(words, 7)
    old["bert.embeddings.position_ids"] = np.arange(512)[None]
    write_tensors(old, tmp_path / "old")
    config = json.loads((directory / "config.json").read_text())
    del config["model_type"]  # the tensors show it
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    for task in (None, "masked_lm", "replaced_token"):
        trees = [
            deberta_jax.load_pretrained(d, task, **ONE_BODY)[1]
            for d in (directory, tmp_path / "old")
        ]
        jax.tree.map(np.testing.assert_array_equal, *trees)


def test_torch_files_and_shards_are_read_alike(checkpoint, tmp_path):
    directory, tensors = checkpoint
    want = last_hidden(directory)
    copies = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    for name, options in (("zip", {}), ("legacy", {"_use_new_zipfile_serialization": False})):
        (tmp_path / name).mkdir()
        torch.save(copies, tmp_path / name / "pytorch_model.bin", **options)
    write_tensors(tensors, tmp_path / "shards", max_shard_bytes=100_000)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for name in ("zip", "legacy", "shards"):
        (tmp_path / name / "config.json").write_bytes((directory / "config.json").read_bytes())
        np.testing.assert_array_equal(last_hidden(tmp_path / name), want)


def test_every_tensor_that_does_not_fit_is_listed(checkpoint):
    directory, tensors = checkpoint
    del tensors["deberta.encoder.layer.1.output.dense.bias"]
    del tensors["lm_predictions.lm_head.bias"]
    tensors["deberta.encoder.layer.0.intermediate.dense.weight"] = np.zeros((96, 63), np.float32)
    tensors["deberta.encoder.layer.9.output.dense.bias"] = np.zeros(64, np.float32)
    tensors["stray"] = np.zeros((2, 3), np.float32)
    write_tensors(tensors, directory)
    with pytest.raises(UserError) as failure:
        deberta_jax.load_pretrained(directory, "masked_lm", **ONE_BODY)
    message = str(failure.value)
    for part in (
        "missing: ",
        "deberta.encoder.layer.1.output.dense.bias (64,)",
        "lm_predictions.lm_head.bias (150,)",
        "extra: ",
        "deberta.encoder.layer.9.output.dense.bias (64,)",
        "stray (2, 3)",
        "misshapen: deberta.encoder.layer.0.intermediate.dense.weight (96, 63) for (96, 64)",
    ):
        assert part in message


def test_strictness_is_relaxed_by_name_only(checkpoint):
    directory, tensors = checkpoint
    tensors["stray"] = np.zeros(3, np.float32)
    write_tensors(tensors, directory)
    with pytest.raises(UserError, match="stray"):
        deberta_jax.load_pretrained(directory)
    deberta_jax.load_pretrained(directory, ignore=["stray"])
    options = {"ignore": ["stray"], "num_labels": 3}
    with pytest.raises(UserError, match=r"classifier\.weight \(3, 64\)"):
        deberta_jax.load_pretrained(directory, "sequence_classification", **options)
    options["new"] = ["pooler.", "classifier."]
    _, params = deberta_jax.load_pretrained(directory, "sequence_classification", **options)
    assert params["classifier"]["kernel"].shape == (64, 3)
    assert np.any(params["classifier"]["kernel"])
    words = params["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_array_equal(words, tensors["deberta.embeddings.word_embeddings.weight"])


@pytest.mark.parametrize("field, value", [("model_type", "bert"), ("type_vocab_size", 2)])
def test_a_config_of_another_kind_names_the_field(field, value, checkpoint):
    directory, _ = checkpoint
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(UserError, match=field):
        deberta_jax.load_pretrained(directory)


def test_a_type_that_no_file_has_is_refused(seed, tmp_path):
    model, params = DebertaForMaskedLM(small.SMALL), small.random_params(small.SMALL, seed)
    with pytest.raises(UserError, match="bfloat16"):
        deberta_jax.save_pretrained(tmp_path / "out", model, params, dtype="int8")


def test_what_is_no_checkpoint_is_said_so(tmp_path):
    with pytest.raises(UserError, match="no directory"):
        deberta_jax.load_pretrained(tmp_path / "nothing")
    with pytest.raises(UserError, match="safetensors"):
        deberta_jax.load_pretrained(tmp_path)


def convert(*arguments):
    command = [sys.executable, "-m", "deberta_jax.convert", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_convert_goes_round_all_layouts_without_changing_a_bit(checkpoint, tmp_path):
    """transformers -> microsoft -> orbax -> transformers, every head carried along."""
    source, tensors = checkpoint
    for layout in ("microsoft", "orbax", "transformers"):
        done = convert(f"--from={source}", f"--to={tmp_path / layout}", f"--layout={layout}")
        assert done.returncode == 0, done.stderr
        source = tmp_path / layout
    assert_same(read_tensors(tmp_path / "transformers"), tensors)
    theirs = torch.load(tmp_path / "microsoft" / "pytorch_model.bin", weights_only=True)
    assert_same({name: tensor.numpy() for name, tensor in theirs.items()}, tensors)
    configs = [d / "config.json" for d in (checkpoint[0], tmp_path / "transformers")]
    first, last = (
        deberta_jax.load_pretrained(c.parent, "masked_lm", **ONE_BODY)[0].config for c in configs
    )
    assert first == last
    assert np.all(last_hidden(tmp_path / "orbax") == last_hidden(checkpoint[0]))


def test_convert_says_what_is_wrong_in_one_line(checkpoint, tmp_path):
    directory, _ = checkpoint
    for arguments, part in (
        ((f"--from={directory}",), "--to is missing"),
        ((f"--from={directory}", f"--to={directory}"), "is not empty"),
        ((f"--from={tmp_path / 'none'}", f"--to={tmp_path / 'new'}"), "is no directory"),
    ):
        done = convert(*arguments)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and line.startswith("error: ") and part in line


def test_what_is_not_finite_is_neither_written_nor_loaded(seed, tmp_path):
    value = np.random.default_rng(seed).choice([np.nan, np.inf, -np.inf])
    config = small.variant(num_hidden_layers=1)
    model, params = DebertaForMaskedLM(config), small.random_params(config, seed)
    pretrained.save(tmp_path / "good", model, params)
    word = params["embeddings"]["word_embeddings"]["embedding"]
    params["embeddings"]["word_embeddings"]["embedding"] = np.asarray(word).copy()
    params["embeddings"]["word_embeddings"]["embedding"][5, 3] = value
    refused = pytest.raises(UserError, match=r"not finite, in deberta\.embeddings\.word_emb")
    with refused:
        pretrained.save(tmp_path / "bad", model, params)
    assert not (tmp_path / "bad").exists()
    tensors = pretrained.to_state_dict(model, params)
    write_tensors(tensors, tmp_path / "good")
    with refused:
        deberta_jax.load_pretrained(tmp_path / "good", "masked_lm")
    for write in (layouts.write_transformers, layouts.write_microsoft, layouts.write_orbax):
        with refused:
            write(Released(config, tensors), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_what_is_not_finite_as_float16_is_not_written(seed, tmp_path):
    config = small.variant(num_hidden_layers=1)
    params = small.random_params(config, seed)
    params = jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(1e6), params)
    with pytest.raises(UserError, match="as float16 holds values that are not finite"):
        pretrained.save(tmp_path / "bad", DebertaForMaskedLM(config), params, dtype="float16")
