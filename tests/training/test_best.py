"""The best evaluation, and patience."""

import math

import pytest

from deberta_jax.errors import UserError
from deberta_jax.training.best import Best


def test_it_knows_the_best_and_runs_out_of_patience():
    best = Best("eval/f1", patience=2)
    taken = [best.update(step, {"eval/f1": f}) for step, f in ((1, 0.5), (2, 0.7), (3, 0.7))]
    assert taken == [True, True, False] and (best.step, best.value) == (2, 0.7)
    assert not best.exhausted
    best.update(4, {"eval/f1": 0.1})
    assert best.exhausted


def test_of_losses_the_smaller_is_better_and_a_session_goes_on_where_it_stood():
    best = Best("eval/loss", patience=2)
    best.update(1, {"eval/loss": 2.0})
    best.update(2, {"eval/loss": 3.0})
    later = Best("eval/loss", patience=2)
    later.restore(best.state)
    assert later == best
    assert later.update(3, {"eval/loss": 1.5}) and not later.exhausted


def test_without_a_metric_nothing_is_compared_and_an_unknown_one_is_named():
    best = Best("")
    assert not best.update(1, {"eval/loss": 1.0}) and not best.exhausted and best.step is None
    with pytest.raises(UserError, match=r"patience is 3; it needs a train\.best_metric"):
        Best("", patience=3)
    with pytest.raises(UserError, match="best_metric is 'eval/f1'; measured are eval/loss"):
        Best("eval/f1").update(1, {"eval/loss": 1.0})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", ["eval/loss", "eval/f1"])
def test_what_is_not_finite_is_never_the_best(metric, value):
    best = Best(metric, patience=3)
    taken = [best.update(step, {metric: x}) for step, x in enumerate((value, 0.5, value), 1)]
    assert taken == [False, True, False] and (best.step, best.value) == (2, 0.5)
    assert best.update(4, {metric: 0.4 if metric == "eval/loss" else 0.6})
    always = Best(metric, patience=2)
    assert not any(always.update(step, {metric: value}) for step in (1, 2))
    assert always.step is None and always.exhausted


def test_a_best_value_that_is_not_finite_is_forgotten_on_resume():
    best = Best("eval/loss")
    best.restore({"step": 3, "value": math.nan, "since": 1})
    assert (best.step, best.value) == (None, None)
    assert best.update(4, {"eval/loss": 9.0})
