"""Means, deviations and differences, against NumPy's; the files that tell them."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from deberta_jax.report.sweep_results import (
    NOT_STARTED,
    Spread,
    markdown,
    metric_names,
    summarize,
    table,
    write_csv,
)
from tests.report.made import make_sweep


def values(results, variant, metric):
    return {r.seed: r.metrics[metric] for r in results if r.variant == variant and r.metrics}


@pytest.mark.parametrize("metric", ["eval/loss", "eval/mlm_accuracy"])
def test_summaries_are_numpy_s(metric, tmp_path, seed):
    results = make_sweep(tmp_path, seed)
    plain, better, odd = summarize(results)
    base = values(results, "plain", metric)
    for summary in (plain, better, odd):
        own = values(results, summary.variant, metric)
        assert (summary.runs, summary.done) == (3, 2 if summary is better else 3)
        spread = summary.metrics[metric]
        assert spread.mean == pytest.approx(np.mean(list(own.values())))
        assert spread.deviation == pytest.approx(np.std(list(own.values()), ddof=1))
        if summary is plain:
            assert summary.differences is None
            continue
        # Seed by seed, over the seeds that both have.
        apart = [own[s] - base[s] for s in own.keys() & base.keys()]
        assert summary.differences[metric].mean == pytest.approx(np.mean(apart))
        assert summary.differences[metric].deviation == pytest.approx(np.std(apart, ddof=1))


def test_any_variant_may_be_the_base(tmp_path, seed):
    results = make_sweep(tmp_path, seed)
    forth, back = summarize(results)[1], summarize(results, "better")[0]
    for name in metric_names(results):
        assert back.differences[name].mean == pytest.approx(-forth.differences[name].mean)


def test_without_a_shared_seed_the_means_are_compared(tmp_path, seed):
    results = [
        dataclasses.replace(r, seed=r.seed + 10 * (r.variant == "better"))
        for r in make_sweep(tmp_path, seed)
    ]
    better = summarize(results)[1]
    means = [np.mean(list(values(results, v, "eval/loss").values())) for v in ("better", "plain")]
    assert better.differences["eval/loss"] == Spread(pytest.approx(means[0] - means[1]), None, 0)


def test_one_seed_has_no_deviation():
    assert Spread.of([1.5]).text() == "1.5000"
    assert Spread.of([1.0, 3.0]).text("+") == "+2.0000 ± 1.4142"


def test_the_csv_has_a_row_a_run(tmp_path, seed):
    results = make_sweep(tmp_path, seed)
    write_csv(results, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [result.name for result in results]
    for row, result in zip(rows, results, strict=True):
        assert (row["variant"], row["seed"]) == (result.variant, str(result.seed))
        assert row["state"] == result.state
        given = row["model.pos_att_type"]
        assert (tuple(json.loads(given)) if given else None) == result.changes.get(
            "model.pos_att_type"
        )
        if result.metrics:
            assert float(row["eval/loss"]) == result.metrics["eval/loss"]
    assert "eval/unigram_loss" not in rows[0]


def test_the_markdown_table_has_a_row_a_variant(tmp_path, seed):
    lines = markdown(table(make_sweep(tmp_path, seed))).splitlines()
    assert len({len(line) for line in lines}) == 1, "columns are not in line"
    head, rule, plain, better, _ = [[c.strip() for c in line.split("|")[1:-1]] for line in lines]
    assert head == ["variant", "seeds", "loss", "to the base", "mlm_accuracy", "to the base"]
    assert all(set(cell) == {"-"} for cell in rule)
    assert plain[3] == plain[5] == "base" and better[1] == "2 of 3"


def test_a_sweep_that_has_not_begun_has_an_empty_table(tmp_path, seed):
    results = [
        dataclasses.replace(r, state=NOT_STARTED, metrics={}) for r in make_sweep(tmp_path, seed)
    ]
    assert metric_names(results) == []
    rows = markdown(table(results)).splitlines()
    assert len(rows) == 5 and "0 of 3" in rows[2]
