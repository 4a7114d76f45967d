"""Sweep files: what they give, and one clear line for every mistake, before anything starts."""

import random
from pathlib import Path

import pytest

from deberta_jax import schema
from deberta_jax.configs.sweeps import ablation, v2_ladder
from deberta_jax.errors import UserError
from deberta_jax.sweeps.driver import check
from tests.sweeps.files import as_trained, read, write

ROOT = Path(__file__).parents[2]


def test_what_is_trained_is_what_was_checked(tmp_path, seed):
    """Every value survives its way over the command line, whatever its type."""
    draw = random.Random(seed)
    variants = [
        {
            "name": f"v{i}",
            "seed": draw.randrange(100),
            "model.pos_att_type": draw.choice([(), ("c2p",), ("p2c", "c2p")]),
            "model.position_biased_input": draw.random() < 0.5,
            "optimizer.learning_rate": draw.lognormvariate(-7, 3),
            "optimizer.b2": draw.choice([0, 0.5, 1 / 3]),
            "train.duration": draw.choice(["17 steps", "0.5 epochs"]),
            "data.text_field": draw.choice(["it's", 'a "b" $c', ""]),
            "train.microbatches": draw.choice([1, 2]),
        }
        for i in range(4)
    ]
    path = write(tmp_path, f"def sweep():\n    yield from {variants!r}")
    file, runs, given = read(path, tmp_path / "w", "--config.train.batch_size=48")
    assert [run.variant for run in runs] == ["v0", "v1", "v2", "v3"]
    for run, variant in zip(runs, variants, strict=True):
        fields = schema.flatten(run.config)
        assert {name: fields[name] for name in variant if name != "name"} == {
            name: value for name, value in variant.items() if name != "name"
        }
        assert run.config.train.batch_size == 48 and run.seed == variant["seed"]
        assert as_trained(run, file, given) == run.config
        assert run.workdir == tmp_path / "w" / "runs" / f"{run.variant}_s{run.seed}"


def test_names_come_from_the_fields_and_seeds_are_repetitions(tmp_path):
    body = """def sweep():
    yield from product({"model.pos_att_type": [(), ("c2p", "p2c")], "seed": [3, 4]})
    yield {"optimizer.learning_rate": 1e-4}
    yield {"seed": 5}"""
    _, runs, _ = read(write(tmp_path, body), tmp_path)
    assert [run.name for run in runs] == [
        "pos_att_type=none_s3",
        "pos_att_type=none_s4",
        "pos_att_type=c2p+p2c_s3",
        "pos_att_type=c2p+p2c_s4",
        "learning_rate=0.0001_s0",
        "base_s5",
    ]


def test_runs_that_need_the_same_data_share_it(tmp_path):
    body = """def sweep():
    yield from product({"seed": [0, 1], "data.vocab_size": [512, 600]})"""
    _, runs, _ = read(write(tmp_path, body), tmp_path)
    small, large, small_again, large_again = [run.data for run in runs]
    assert small == small_again != large == large_again
    assert all(run.data.parent == tmp_path / "data" for run in runs)
    _, runs, _ = read(
        write(tmp_path, "def sweep():\n    yield {}"), tmp_path, "--config.data.dir=d"
    )
    assert runs[0].data == Path("d")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sweep = 3", r"made_up\.py is no sweep: .* must define sweep\(\)"),
        ("def sweep():\n    return []", r"sweep\(\) gives no variant"),
        ("def sweep():\n    yield 3", r"variant 1 of sweep\(\) is 3; it must be a dict"),
        ("def sweep():\n    yield {'model.hiden_size': 3}",
         r"variant hiden_size=3: config has no field 'model\.hiden_size'; the nearest is"),
        ("def sweep():\n    yield {'train.batch_size': 'many'}",
         r"variant batch_size=many: train\.batch_size is 'many'; it must be of type int"),
        ("def sweep():\n    yield {'name': 'a'}\n    yield {'model.hidden_size': 33}",
         r"variant hidden_size=33: model\.hidden_size 33 is not a multiple"),
        ("def sweep():\n    yield {'name': 'a'}\n    yield {'name': 'a'}",
         r"two variants have the same name, a \(seed 0\)"),
        ("def sweep():\n    yield {'seed': 1}\n    yield {'seed': 1}",
         r"two variants have the same name, base \(seed 1\)"),
        ("def sweep():\n    yield {'name': 'a'}\n"
         "    yield {'name': 'a', 'seed': 1, 'train.batch_size': 4}",
         r"same name, a, and differ in train\.batch_size"),
        ("def sweep():\n    yield {'name': 'a/b'}", r"variant 'a/b': a name must be"),
        ("BASE = 'b'\n\ndef sweep():\n    yield {'name': 'a'}",
         r"BASE is 'b', but the variants are a"),
        ("def sweep():\n    yield {'objective': 'nsp'}", r"objective is 'nsp'"),
        ("def sweep():\n    yield {}\n    raise KeyError('oh')", r"made_up\.py:12: 'oh'"),
        ("def sweep():\n    yield {}\n    yield {'data.vocab_size': 600, 'data.dir': 'd'}\n"
         "    yield {'name': 'c', 'data.dir': 'd'}",
         r"differ in data\.vocab_size, but share data\.dir d"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(body, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        check(read(write(tmp_path, body), tmp_path / "w")[1])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "w").exists()


def test_a_run_that_was_started_with_other_values_is_refused(tmp_path):
    path = write(tmp_path, "def sweep():\n    yield {'name': 'a'}")
    _, (run,), _ = read(path, tmp_path)
    run.workdir.mkdir(parents=True)
    schema.save(run.config, run.workdir / "config.json")
    check([run])
    path = write(tmp_path, "def sweep():\n    yield {'name': 'a', 'optimizer.learning_rate': 0.5}")
    with pytest.raises(
        UserError, match=r"a_s0 was started .*optimizer\.learning_rate: 0\.01 -> 0\.5"
    ):
        check(read(path, tmp_path)[1])


@pytest.mark.parametrize("size", ["published", "tiny"])
@pytest.mark.parametrize("name", ["ablation", "v2_ladder"])
def test_the_sweeps_of_the_project(name, size, tmp_path):
    recipe = f"configs/sweeps/{name}.py:{size}"
    _, runs, _ = read(recipe, tmp_path)
    check(runs)
    variants = {run.variant: run.config.model for run in runs}
    seeds = 3 if size == "tiny" else 1
    assert len(runs) == seeds * len(variants)
    assert {run.config.model.hidden_size for run in runs} == {64 if size == "tiny" else 768}
    if name == "ablation":
        for variant, model in variants.items():
            plain = variant == "roberta_like"
            assert model.position_biased_input == plain
            assert model.decodes_with_emd == (not plain and "emd" not in variant)
            kept = {term for term in ("c2p", "p2c") if term not in variant and not plain}
            assert set(model.pos_att_type) == kept
    else:
        rungs = list(variants.values())
        assert [m.share_att_key for m in rungs] == [False, True, True, True]
        assert [m.conv_kernel_size for m in rungs] == [0, 0, 3, 3]
        assert rungs[0].vocab_size == rungs[2].vocab_size < rungs[3].vocab_size


@pytest.mark.parametrize("sweep", [ablation, v2_ladder])
def test_a_size_that_is_not_there_is_named(sweep):
    with pytest.raises(ValueError, match=r"no size 'huge'; sizes are published, tiny"):
        sweep.get_config("huge")
