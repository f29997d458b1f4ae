"""Several runs side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats
from shown_runs import log, make_run

from stackwise.reports.comparison import Interval, compare, differing_keys, seed_groups
from stackwise.reports.record import RunRecord, read_run


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    folder = tmp_path_factory.mktemp("several")
    runs = [make_run(folder, "one"), make_run(folder, "two", seed=4), make_run(folder, "three", lr=5e-2, steps=12)]
    return [read_run(run) for run in runs]


def test_only_the_keys_that_differ_are_listed(records: list[RunRecord]):
    assert differing_keys(records) == {
        "run.seed": ["3", "4", "3"],
        "run.horizon": ["24 steps", "24 steps", "12 steps"],
        "optimizer.lr.wsd.peak": ["0.01", "0.01", "0.05"],
    }


def test_runs_that_differ_in_their_seed_alone_are_one_group(records: list[RunRecord]):
    assert seed_groups(records) == [0, 0, 1]


@pytest.mark.parametrize("axis", ["steps", "tokens"])
def test_metrics_are_compared_where_all_have_come(records: list[RunRecord], axis: str):
    row = next(row for row in compare(records, axis) if row.metric == "loss")  # type: ignore[arg-type]
    assert (row.at, row.steps) == (12 if axis == "steps" else 96, (12, 12, 12))
    for record, value in zip(records, row.values, strict=True):
        assert value in [
            e["metrics"]["loss"] for e in log(Path(record.path), "events.jsonl") if e["event"] == "evaluated" and e["at"] == "exit"
        ]


def test_intervals_are_students():
    values = [2.0, 3.5, 1.0, 4.25]
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / 4, scale=stats.sem(values))
    interval = Interval.of(values)
    assert (interval.mean, interval.count) == (2.6875, 4)
    assert interval.half_width == pytest.approx((high - low) / 2, rel=1e-3)
    assert Interval.of([2.0]).half_width is None
    for count in range(2, 40):
        spread = Interval.of([0.0] * (count - 1) + [1.0]).half_width
        expected = stats.t.ppf(0.975, count - 1) * stats.sem([0.0] * (count - 1) + [1.0])
        assert spread == pytest.approx(expected, rel=1e-3 if count < 32 else 0.05)
