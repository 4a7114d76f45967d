"""Pairs of generator and discriminator in every arrangement; files that do not belong together."""

import dataclasses
import re

import numpy as np
import pytest

import deberta_jax
from deberta_jax.errors import UserError
from deberta_jax.interop.rtd_files import read_pair
from tests.interop import rtd
from tests.interop.rtd import POSITION_DELTA, POSITIONS, WORD_DELTA, WORDS

SECTIONS = {"discriminator": rtd.config(4), "generator": rtd.config(2)}


def assert_same(tensors, want, but=()):
    """Equal names, shapes and bits, in float32."""
    assert tensors.keys() == want.keys()
    for name in want.keys() - set(but):
        assert tensors[name].dtype == np.float32, name
        np.testing.assert_array_equal(tensors[name], want[name], err_msg=name)


def assert_read(pair, files):
    """The very tensors of the files, and E_Δ up to how its sum was rounded."""
    assert_same(pair.generator.released().tensors, files.generator)
    assert_same(pair.discriminator.released().tensors, files.discriminator)
    assert pair.discriminator.config.num_hidden_layers == 4
    assert pair.generator.config.num_hidden_layers == 2
    assert pair.generator.config.decodes_with_emd
    assert pair.delta.dtype == np.float32
    np.testing.assert_allclose(pair.delta, files.delta, rtol=0, atol=1e-7)


def published(files, home):
    rtd.write_bin(files.discriminator, home / "pytorch_model.bin")
    rtd.write_json(rtd.config(4), home / "config.json")
    rtd.write_bin(files.generator, home / "pytorch_model.generator.bin")
    rtd.write_json(rtd.config(2), home / "generator_config.json")
    return (home,)


def published_without_the_generator_s_config(files, home):
    published(files, home)
    (home / "generator_config.json").unlink()
    return (home,)


def both_halves_named(files, home):
    published(files, home)
    (home / "pytorch_model.bin").rename(home / "pytorch_model.discriminator.bin")
    return (home,)


def two_files(files, home):
    published(files, home)
    return home / "pytorch_model.bin", home / "pytorch_model.generator.bin"


def two_files_in_two_folders(files, home):
    rtd.write_bin(files.discriminator, home / "a" / "some.bin")
    rtd.write_json(rtd.config(4), home / "a" / "config.json")
    rtd.write_bin(files.generator, home / "b" / "other.bin")
    return home / "a" / "some.bin", home / "b" / "other.bin"


def two_folders(files, home):
    return (
        rtd.write_folder(files.discriminator, 4, home / "one"),
        rtd.write_folder(files.generator, 2, home / "other"),
    )


def two_homes_of_both(files, home):
    """Each path is of a home of both models; the one that the other path names is not read."""
    wrong = {name: x + 1 for name, x in files.discriminator.items()}
    generator_in_the_checkpoint(files._replace(discriminator=wrong), home / "a")
    wrong = {name: x + 1 for name, x in files.generator.items()}
    folders_of_both(files._replace(generator=wrong), home / "b")
    return home / "b", home / "a"


def generator_in_the_checkpoint(files, home):
    rtd.write_folder(files.generator, 2, home / "generator")
    return (rtd.write_folder(files.discriminator, 4, home),)


def folders_of_both(files, home):
    rtd.write_folder(files.generator, 2, home / "generator")
    rtd.write_folder(files.discriminator, 4, home / "discriminator")
    return (home,)


def microsoft_s_training(files, home):
    """Of step 200, which is the newest that both models have."""
    stale = {name: x + 1 for name, x in files.discriminator.items()}
    for part, own in (("discriminator", files.discriminator), ("generator", files.generator)):
        rtd.write_bin(stale, home / part / "pytorch.model-000090.bin")
        rtd.write_bin(own, home / part / "pytorch.model-000200.bin")
    rtd.write_bin(stale, home / "discriminator" / "pytorch.model-000300.bin")
    rtd.write_json(SECTIONS, home / "model_config.json")
    return (home,)


def one_file_of_both(files, home):
    rtd.write_bin(rtd.prefixed(files), home / "any.bin")
    rtd.write_json(SECTIONS, home / "model_config.json")
    return (home / "any.bin",)


def one_file_of_both_and_one_config(files, home):
    rtd.write_bin(rtd.prefixed(files), home / "pytorch.model-000200.bin")
    rtd.write_json(rtd.config(4), home / "config.json")
    return (home,)


ARRANGEMENTS = [
    published, published_without_the_generator_s_config, both_halves_named, two_files,
    two_files_in_two_folders, two_folders, two_homes_of_both, generator_in_the_checkpoint,
    folders_of_both, microsoft_s_training, one_file_of_both, one_file_of_both_and_one_config,
]  # fmt: skip


@pytest.mark.parametrize("arrange", ARRANGEMENTS, ids=lambda arrange: arrange.__name__)
def test_every_arrangement_is_the_same_pair(arrange, seed, tmp_path):
    files = rtd.make(seed)
    assert_read(read_pair(*arrange(files, tmp_path)), files)


def old(name):
    """As files of before 2021 name their tensors."""
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return name.replace("LayerNorm.bias", "LayerNorm.beta").replace("deberta.", "bert.", 1)


def bare(name):
    return name.removeprefix("deberta.")


@pytest.mark.parametrize("spelling", [old, bare])
@pytest.mark.parametrize("tables", ["sum", "delta", "both"])
def test_names_of_other_times(spelling, tables, seed, tmp_path):
    """A bare model of `transformers` has no prefix, and neither has its E_Δ."""
    files = rtd.make(seed)
    own = stored(files, tables)
    rtd.write_folder({spelling(name): x for name, x in own.items()}, 4, tmp_path)
    generator = {spelling(name): x for name, x in files.generator.items()}
    rtd.write_folder(generator, 2, tmp_path / "generator")
    assert_read(read_pair(tmp_path), files)


def stored(files, tables):
    """The discriminator's tensors with its word table as "sum", as "delta" or as "both"."""
    own = dict(files.discriminator)
    if tables != "sum":
        own |= {WORD_DELTA: files.delta, POSITION_DELTA: np.zeros_like(own[POSITIONS])}
    if tables == "delta":
        del own[WORDS], own[POSITIONS]
    return own


def read_with(own, files, home):
    rtd.write_bin(own, home / "pytorch_model.bin")
    rtd.write_json(rtd.config(4), home / "config.json")
    rtd.write_folder(files.generator, 2, home / "generator")
    return read_pair(home)


@pytest.mark.parametrize("tables", ["sum", "delta", "both"])
def test_tables_however_they_are_kept(tables, seed, tmp_path):
    files = rtd.make(seed)
    pair = read_with(stored(files, tables), files, tmp_path)
    assert_read(pair, files)
    if tables != "sum":
        np.testing.assert_array_equal(pair.delta, files.delta)


def test_a_sum_that_is_one_step_old_is_made_anew(seed, tmp_path):
    files = rtd.make(seed)
    own = stored(files, "both")
    step = 1e-3 * np.random.default_rng(seed).choice([-1, 1], files.delta.shape)
    own[WORDS] = (own[WORDS] + step).astype(np.float32)
    assert_read(read_with(own, files, tmp_path), files)
    # Alone, it has no other table than the stored one.
    alone = read_pair(tmp_path / "pytorch_model.bin").discriminator
    np.testing.assert_array_equal(alone.word_table_VE, own[WORDS])


@pytest.mark.parametrize("broken", ["other run", "nan"])
def test_a_sum_of_another_generator_is_refused(broken, seed, tmp_path):
    files = rtd.make(seed)
    own = stored(files, "both")
    own[WORDS] = rtd.make(seed + 1).discriminator[WORDS]
    if broken == "nan":
        own[WORDS] = np.full_like(own[WORDS], np.nan)
    with pytest.raises(UserError, match="not of one run") as failure:
        read_with(own, files, tmp_path)
    assert WORDS in str(failure.value) and WORD_DELTA in str(failure.value)


def test_half_precision_with_one_float32_delta(seed, tmp_path):
    """As mDeBERTa: the sum is of float32, so that a Δ smaller than float16 resolves is kept."""
    files = rtd.make(seed)
    delta = files.delta * np.float32(1e-4)
    generator = {name: x.astype(np.float16) for name, x in files.generator.items()}
    own = {name: x.astype(np.float16) for name, x in files.discriminator.items()}
    own |= {WORDS: (generator[WORDS] + delta).astype(np.float16), WORD_DELTA: delta}
    pair = read_with(own, files._replace(generator=generator), tmp_path)
    np.testing.assert_array_equal(pair.delta, delta)
    want = {name: x.astype(np.float32) for name, x in own.items() if name != WORD_DELTA}
    want[WORDS] = generator[WORDS].astype(np.float32) + delta
    want[POSITIONS] = generator[POSITIONS].astype(np.float32)
    assert_same(pair.discriminator.released().tensors, want)
    assert np.any(want[WORDS] != generator[WORDS])


def test_a_discriminator_alone(seed, tmp_path):
    files = rtd.make(seed)
    head = rtd.lm_head(seed)
    pair = read_pair(rtd.write_folder(files.discriminator | head, 4, tmp_path))
    assert pair.generator is None and pair.delta is None and pair.tokenizer is None
    assert_same(pair.discriminator.released().tensors, files.discriminator)
    assert_same(pair.discriminator.lm_predictions, head)


def test_an_encoder_alone_has_no_head_and_no_position_table(seed, tmp_path):
    files = rtd.make(seed)
    encoder = {
        name.removeprefix("deberta."): x
        for name, x in files.discriminator.items()
        if not name.startswith("mask_predictions") and name != POSITIONS
    }
    discriminator = read_pair(rtd.write_folder(encoder, 4, tmp_path)).discriminator
    assert discriminator.head is None and discriminator.lm_predictions == {}
    assert discriminator.config.decodes_with_emd
    tensors = discriminator.released().tensors
    assert_same(tensors, {f"deberta.{name}": x for name, x in encoder.items()})


def test_the_position_table_is_the_generator_s(seed, tmp_path):
    files = rtd.make(seed)
    own = files.discriminator | {POSITIONS: rtd.make(seed + 1).generator[POSITIONS]}
    assert_read(read_with(own, files, tmp_path), files)


def test_the_tokenizer_of_both(seed, tmp_path):
    files = rtd.make(seed)
    (home,) = folders_of_both(files, tmp_path)
    rtd.write_tokenizer(home, 120)
    assert read_pair(home).tokenizer.vocab_size == 120
    rtd.write_tokenizer(home / "generator", 120)
    assert read_pair(home).tokenizer.vocab_size == 120
    rtd.write_tokenizer(home / "generator", 121)
    refuse(home, match="different tokenizers, of 120 and 121 tokens")
    rtd.write_tokenizer(home, rtd.VOCAB + 1)
    rtd.write_tokenizer(home / "generator", rtd.VOCAB + 1)
    refuse(home, match="the tokenizer has 151 tokens, the word table 150 rows")


def refuse(*paths, match):
    """Refused in one line, whatever the paths name."""
    with pytest.raises(UserError, match=match) as failure:
        read_pair(*paths)
    assert "\n" not in str(failure.value)
    return str(failure.value)


@pytest.mark.parametrize(
    "field, options",
    [
        ("hidden_size", {"hidden_size": 32, "pooler_hidden_size": 32}),
        ("vocab_size", {"vocab_size": 151}),
    ],
)
def test_a_generator_of_another_size(field, options, seed, tmp_path):
    files = rtd.make(seed)
    own = rtd.released.make("v3", "ForMaskedLM", seed, num_hidden_layers=2, **options)
    generator = {name: x.numpy() for name, x in own.state_dict().items() if "decoder" not in name}
    home = rtd.write_folder(files.discriminator, 4, tmp_path)
    rtd.write_folder(generator, 2, home / "generator", **options)
    refuse(home, match=f"generator's {field} is {options[field]}, the discriminator's")


def test_a_table_of_positions_of_another_length(seed, tmp_path):
    files = rtd.make(seed)
    home = rtd.write_folder(files.discriminator, 4, tmp_path)
    generator = files.generator | {POSITIONS: files.generator[POSITIONS][:256]}
    rtd.write_folder(generator, 2, home / "generator", max_position_embeddings=256)
    refuse(home, match="generator's max_position_embeddings is 256, the discriminator's 512")


@pytest.mark.parametrize("name", [WORDS, WORD_DELTA])
def test_a_table_that_does_not_fit_the_generator_s(name, seed, tmp_path):
    files = rtd.make(seed)
    own = stored(files, "delta")
    own[name] = files.delta[:100]
    with pytest.raises(UserError) as failure:
        read_with(own, files, tmp_path)
    assert f"{name} is (100, 64), the generator's table (150, 64)" in str(failure.value)


def test_a_discriminator_with_neither_table(seed, tmp_path):
    files = rtd.make(seed)
    own = stored(files, "delta")
    del own[WORD_DELTA]
    with pytest.raises(UserError, match=re.escape(f"has neither {WORDS} nor {WORD_DELTA}")):
        read_with(own, files, tmp_path)


def test_two_models_that_are_not_a_pair(seed, tmp_path):
    files = rtd.make(seed)
    one, other = two_folders(files, tmp_path)
    refuse(other, one, match="the first path names the discriminator")
    refuse(one, one, match=r"has no lm_predictions\.\*")
    refuse(tmp_path / "nowhere", match="neither a file nor a directory; it must hold a discrim")
    refuse(one, tmp_path / "nowhere", match="neither a file nor a directory; it must hold a gen")
    generator = {f"generator.{name}": x for name, x in files.generator.items()}
    rtd.write_bin(generator, tmp_path / "half.bin")
    refuse(tmp_path / "half.bin", match="holds a generator only; it must hold a discriminator")
    refuse(tmp_path / "none" / "x", match="neither")


def test_steps_that_do_not_meet(seed, tmp_path):
    files = rtd.make(seed)
    rtd.write_bin(files.discriminator, tmp_path / "discriminator" / "pytorch.model-000300.bin")
    rtd.write_bin(files.generator, tmp_path / "generator" / "pytorch.model-000200.bin")
    rtd.write_json(SECTIONS, tmp_path / "model_config.json")
    line = refuse(tmp_path, match="no step is in both")
    assert "pytorch.model-000300.bin" in line and "pytorch.model-000200.bin" in line


def test_tensors_that_are_too_many_or_too_few_name_the_file(seed, tmp_path):
    files = rtd.make(seed)
    own = dict(files.discriminator)
    own["deberta.encoder.layer.9.output.dense.bias"] = own.pop(
        "deberta.encoder.layer.3.output.dense.bias"
    )
    one = rtd.write_folder(own, 4, tmp_path / "one")
    line = refuse(one, match=r"extra: deberta\.encoder\.layer\.9\.output\.dense\.bias")
    assert line.startswith(f"{one}: ") and "missing: deberta.encoder.layer.3" in line
    own = {name: x for name, x in files.discriminator.items() if "classifier" not in name}
    refuse(rtd.write_folder(own, 4, one), match=r"missing: mask_predictions\.classifier\.weight")


def test_what_only_a_pair_makes_whole_is_no_checkpoint(seed, tmp_path):
    """A word table that is only a difference, and two models in one file."""
    files = rtd.make(seed)
    home = rtd.write_folder(stored(files, "delta"), 4, tmp_path / "delta")
    both = rtd.write_folder(rtd.prefixed(files), 4, tmp_path / "both")
    for read in (deberta_jax.load_pretrained, read_pair):
        with pytest.raises(UserError, match="adds to its generator's table") as failure:
            read(home)
        assert str(failure.value).startswith(f"{home}: {WORD_DELTA}")
    with pytest.raises(UserError, match="two models in one file"):
        deberta_jax.load_pretrained(both)
    assert_read(read_pair(both), files)


def test_what_the_generator_s_own_config_says_is_kept(seed, tmp_path):
    """Other heads and another dropout are the generator's own business."""
    files = rtd.make(seed)
    home = rtd.write_folder(files.discriminator, 4, tmp_path)
    own = {"num_attention_heads": 4, "hidden_dropout_prob": 0.2}
    rtd.write_folder(files.generator, 2, home / "generator", **own)
    pair = read_pair(home)
    want = dataclasses.replace(pair.discriminator.config, num_hidden_layers=2, **own)
    assert pair.generator.config == want
