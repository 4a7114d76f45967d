"""Whole runs of a small objective whose batches have faults: what is skipped, saved, said."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from deberta_jax import schema
from deberta_jax.errors import UserError
from deberta_jax.training import loop
from deberta_jax.training.anomalies import Diverged
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.finite import not_finite
from deberta_jax.training.guard import Guard
from deberta_jax.training.metrics import read_metrics
from deberta_jax.training.program import make_program
from deberta_jax.training.step_units import StepUnits
from tests.training.toys import ROWS, Faulty, batch_of

STEPS = 12


def settings(**sections):
    config = schema.default()
    config.train.update(
        batch_size=ROWS,
        duration=f"{STEPS} steps",
        log_every="2 steps",
        eval_every="4 steps",
        checkpoint_every="3 steps",
    )
    config.optimizer.update(learning_rate=0.02, warmup="2 steps")
    for name, values in sections.items():
        config[name].update(values)
    return schema.freeze(config)


class Idle(Faulty):
    """With a parameter that no loss reads."""

    def init(self, rng):
        params = super().init(rng)
        params["second"]["idle"] = params["second"]["slope"]
        return params


@functools.cache
def program(objective=Faulty, eps=1e-6):
    config = settings(optimizer=dict(eps=eps))
    return make_program(config, objective(), StepUnits(1.0, 1.0, STEPS), jax.devices()[:1])


class Input:
    """Batches by their first sample, with a fault in some; `left_out` are not there at all."""

    def __init__(self, seed, faults=(), left_out=()):
        self.seed, self.faults, self.left_out = seed, dict.fromkeys(faults, np.nan), left_out

    def batch(self, number):
        if number in self.faults:
            return batch_of(self.seed + number, "second gradient", self.faults[number])
        return batch_of(self.seed + number)

    def __call__(self, sample):
        number = sample // ROWS
        while True:
            if number not in self.left_out:
                yield self.batch(number)
            number += 1


def train(workdir, batches, guard=None, measure=None, made=None, initial_params=None, **options):
    """As the verb: a guard's settings, `train`'s settings."""
    config = settings(guard=guard or {}, train=options)
    made = made or program()
    made = made._replace(guard=Guard(config.guard, made.guard.watched))
    workdir.mkdir(exist_ok=True)
    return loop.train(
        made,
        batches,
        measure or (lambda params: {"eval/loss": float(params["first"]["slope"].sum())}),
        config=config.train,
        profile=config.profile,
        seed=5,
        workdir=workdir,
        flops_per_token=1.0,
        initial_params=initial_params,
    )


def state_of(workdir):
    """The newest checkpoint: (state, position, clock)."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(program().abstract)


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_same(ours, want):
    jax.tree.map(np.testing.assert_array_equal, ours.state, want.state)
    assert ours.input == want.input


def test_bad_steps_leave_a_note_and_a_folder_and_nothing_else(tmp_path, seed, capsys, monkeypatch):
    """At the first step, at one that is saved, at one that is measured, and at the last."""
    monkeypatch.setenv("SOME_TOKEN", "secret-of-this-test")
    bad = (0, 2, 7, STEPS - 1)
    batches = Input(seed, bad)
    assert train(tmp_path, batches, guard=dict(bundles=3))["eval/loss"] == pytest.approx(
        float(state_of(tmp_path).state.params["first"]["slope"].sum())
    )
    output = capsys.readouterr().out
    for number in bad:
        assert f"step {number + 1} is skipped, not finite: optim/second/grad_norm nan" in output
    state = state_of(tmp_path)
    assert not not_finite(state.state) and int(state.state.step) == STEPS
    assert saved_steps(tmp_path) == [9, STEPS]
    assert state.clock["guard"]["skipped"] == len(bad)
    lines = read_metrics(tmp_path)
    assert {line["step"] for line in lines if "guard/skipped" in line} == {2, 3, 8, STEPS}
    assert sum(line.get("guard/skipped", 0) for line in lines) == len(bad)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()

    folders = sorted(path.name for path in (tmp_path / "anomalies").iterdir())
    assert folders == ["step_1", "step_3", "step_8"]
    for number in bad[:3]:
        folder = tmp_path / "anomalies" / f"step_{number + 1}"
        with np.load(folder / "batch_0.npz") as batch:
            for name, rows in batches.batch(number).items():
                np.testing.assert_array_equal(batch[name], rows)
        report = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
        assert (report["step"], report["first_sample"]) == (number + 1, number * ROWS)
        assert report["metrics"]["optim/second/grad_norm"] == "nan"
        norms = report["gradient_norms"]
        assert norms["second/slope"] == "nan" and norms["first/slope"] > 0
    for path in (tmp_path / "anomalies").rglob("*"):
        assert path.is_dir() or b"secret-of-this-test" not in path.read_bytes()


def test_no_checkpoint_is_written_while_steps_are_skipped(tmp_path, seed):
    """Steps 2 to 4 are bad, 3 is due: the checkpoint is that of step 5."""
    train(tmp_path, Input(seed, (1, 2, 3)), keep_checkpoints=9)
    assert saved_steps(tmp_path) == [5, 6, 9, STEPS]


def test_too_many_in_a_row_end_the_run_with_a_status_of_its_own(tmp_path, seed, capsys):
    """And nothing is saved since; a restart cannot get past them, and says the same."""
    batches = Input(seed, range(4, 40))
    for _ in range(2):
        with pytest.raises(Diverged, match=r"4 steps in a row .* step 8: nothing was saved since "):
            train(tmp_path, batches, guard=dict(patience=4, bundles=1))
        assert Diverged("").status == 3
        assert not not_finite(state_of(tmp_path).state)
    assert [line["step"] for line in read_metrics(tmp_path) if "perf/goodput" in line][-1] == 8
    # Without the fault the same run goes on to its end.
    assert train(tmp_path, Input(seed), guard=dict(patience=4))
    assert saved_steps(tmp_path)[-1] == STEPS


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory):
    """A run that went back: (workdir, seed). It looks after steps 2, 4, ..., one step late."""
    workdir = tmp_path_factory.mktemp("rolled") / "run"
    seed = int(np.random.default_rng().integers(10**9))
    train(workdir, Input(seed, (4, 5)), guard=dict(patience=2, then="rollback"))
    return workdir, seed


def test_a_rollback_leaves_out_what_was_read_since_the_checkpoint(rolled_back, tmp_path):
    """Batches 3 to 6: from the checkpoint of step 3 on, to the one that was under way."""
    workdir, seed = rolled_back
    train(tmp_path / "want", Input(seed, left_out=range(3, 7)))
    ours, want = state_of(workdir), state_of(tmp_path / "want")
    jax.tree.map(np.testing.assert_array_equal, ours.state, want.state)
    assert ours.input == want.input | {"next_sample": (STEPS + 4) * ROWS}
    assert (ours.clock["rollbacks"], ours.clock["guard"]["skipped"]) == (1, 0)

    def measured(directory):
        lines = read_metrics(directory)
        return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]

    assert measured(workdir) == measured(tmp_path / "want")


def test_a_run_that_went_back_resumes_bit_for_bit(rolled_back, tmp_path):
    """From the checkpoint before the fault, and from one after."""
    workdir, seed = rolled_back
    for steps in (("12",), ("9", "12")):
        again = tmp_path / "-".join(steps)
        shutil.copytree(workdir, again)
        for step in steps:
            shutil.rmtree(again / "checkpoints" / step, ignore_errors=True)
        train(again, Input(seed, (4, 5)), guard=dict(patience=2, then="rollback"))
        assert_same(state_of(again), state_of(workdir))


def test_rollbacks_come_to_an_end(tmp_path, seed, capsys):
    guard = dict(patience=2, then="rollback", rollbacks=2, bundles=0)
    with pytest.raises(Diverged, match=r"checkpoint of step 3, after 2 rollbacks"):
        train(tmp_path, Input(seed, range(4, 40)), guard=guard)
    assert capsys.readouterr().out.count("back to step 3, without the batches") == 2
    with pytest.raises(Diverged, match="since the beginning"):
        train(tmp_path / "none", Input(seed, range(40)), guard=guard)


def test_a_state_that_is_not_finite_is_never_saved(tmp_path, seed):
    """With eps 0, Adam divides 0 by 0 where a gradient is 0; every loss and gradient is finite."""
    with pytest.raises(Diverged, match=r"step 3 is not finite, in params/second/idle: noth"):
        train(tmp_path, Input(seed), made=program(Idle, eps=0.0))
    assert saved_steps(tmp_path) == []


def test_what_is_not_finite_is_refused_at_the_start(tmp_path, seed):
    params = Faulty().init(jax.random.key(seed))
    params["second"]["slope"] = params["second"]["slope"].at[1].set(np.inf)
    with pytest.raises(UserError, match=r"train.init=there .* not finite, in params/second/slope"):
        train(tmp_path, Input(seed), initial_params=lambda: params, init="there")


def test_an_evaluation_that_is_not_finite_is_never_the_best(tmp_path, seed):
    """Once: the best of the others is kept. Always: the latest is."""
    for name, losses, best in (("once", [np.nan, 1.0, 2.0], 8), ("always", [np.nan] * 3, None)):
        values = iter(losses)
        workdir = tmp_path / name
        options = dict(best_metric="eval/loss", keep_checkpoints=1)
        train(workdir, Input(seed), measure=lambda _, v=values: {"eval/loss": next(v)}, **options)
        with Checkpoints(workdir, read_only=True) as checkpoints:
            assert checkpoints.best() == best
        assert saved_steps(workdir) == ([best] if best else []) + [STEPS]
