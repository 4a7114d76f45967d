"""A search asks Optuna, remembers what it was told, and goes on where it was killed."""

import json
import random

import pytest

from deberta_jax.errors import UserError
from deberta_jax.sweeps.search import Search
from deberta_jax.sweeps.variants import make_run
from tests.tiny_recipe import get_config

optuna = pytest.importorskip("optuna", reason="the search extra is not installed")
BEST = 3e-3


def overrides(trial):
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    terms = trial.suggest_categorical("terms", ["", "c2p", "c2p p2c"])
    return {"optimizer.learning_rate": rate, "model.pos_att_type": tuple(terms.split())}


def search(workdir, trials=12, sampler="tpe", metric="eval/loss", seed=0):
    def make(name, fields):
        return make_run(get_config(), fields, workdir, name)

    return Search(overrides, make, workdir, trials, sampler, metric, seed)


def train(run):
    """Leaves what a run leaves: the further from the best rate, the greater its loss."""
    loss = abs(run.config.optimizer.learning_rate - BEST)
    run.workdir.mkdir(parents=True)
    line = {"step": 1, "eval/loss": loss, "eval/mlm_accuracy": -loss}
    (run.workdir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return loss


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("metric", ["eval/loss", "eval/mlm_accuracy"])
def test_the_best_trial_is_the_one_nearest_to_the_best(sampler, metric, tmp_path, seed):
    queue, losses = search(tmp_path, sampler=sampler, metric=metric, seed=seed), {}
    while run := queue.take():
        assert set(run.config.model.pos_att_type) <= {"c2p", "p2c"}
        losses[run.name] = train(run)
        queue.tell(run, done=True)
    assert len(losses) == 12 and next(iter(losses)) == "trial_000_s0"
    assert queue.best().name == min(losses, key=losses.get)


def test_a_killed_search_goes_on_with_the_same_trials(tmp_path, seed):
    draw = random.Random(seed)
    first = search(tmp_path, seed=seed)
    for index in range(6):
        run = first.take()
        if index != 3:  # trial 3 is still running when all is killed, as is 5
            train(run)
        if index not in (3, 5):
            first.tell(run, done=draw.random() < 0.7)
    first._study.ask()  # one more, killed before it knew its fields
    second = search(tmp_path, seed=seed)
    assert [run.config for run in second.known()] == [run.config for run in first.known()]
    left = [second.take(), second.take()]
    assert [run.name for run in left] == ["trial_003_s0", "trial_005_s0"]
    train(left[0])
    for run in left:
        second.tell(run, done=True)
    names = [run.name for run in iter(second.take, None)]
    assert names == [f"trial_{number:03}_s0" for number in range(7, 13)]
    # What is drawn then is not what was drawn at first.
    rates = [run.config.optimizer.learning_rate for run in second.known()]
    assert len(set(rates)) == 12


def test_a_failed_trial_is_never_the_best(tmp_path):
    queue = search(tmp_path, trials=2)
    queue.tell(queue.take(), done=False)
    assert queue.best() is None
    run = queue.take()
    train(run)
    queue.tell(run, done=True)
    assert queue.best().name == "trial_001_s0" and queue.take() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(trials=0), "--trials=0 must be at least 1"),
        (dict(sampler="grid"), "--sampler=grid must be one of tpe, random"),
    ],
)
def test_a_mistake_is_one_clear_line(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        search(tmp_path, **options)


def test_a_metric_that_is_not_measured_is_named(tmp_path):
    queue = search(tmp_path, metric="eval/f1")
    run = queue.take()
    train(run)
    with pytest.raises(UserError, match="METRIC is 'eval/f1', which the runs do not measure"):
        queue.tell(run, done=True)
