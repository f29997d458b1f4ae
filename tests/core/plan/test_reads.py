"""What a timeline reads of each source, against the sum over its steps; what does not start over and does not suffice."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_walks import base, memory, plan_of, problems_of

from stackwise.plan.reads import declared_sizes, reads_of


def two(mix: dict[str, Any], **data: Any) -> dict[str, Any]:
    sources = {"a": memory(0), "b": memory(1)}
    return base(data={"sources": sources, "mix": mix, "batch_size": 8, "seq_len": 4, **data})


def read(config: dict[str, Any]) -> list[dict[str, float]]:
    plan = plan_of(config)
    pairs = zip(plan.schedule, plan.joined, strict=True)
    return [{n: r.rows for n, r in reads_of(phase, j, plan.schedule.clock, declared_sizes(j)).items()} for phase, j in pairs]


def test_constant_weights_share_the_rows_of_every_step() -> None:
    (rows,) = read(two({"a": 3, "b": 1}))
    steps = plan_of(two({"a": 3, "b": 1})).schedule.steps
    assert rows == pytest.approx({"a": steps * 8 * 0.75, "b": steps * 8 * 0.25})


def test_moving_weights_are_summed_step_by_step() -> None:
    config = two({"a": {"linear": {"from": 1, "to": 0}}, "b": {"linear": {"from": 0, "to": 1}}})
    clock = plan_of(config).schedule.clock
    (rows,) = read(config)
    assert rows["a"] == pytest.approx(sum(8 * (1 - clock.t(k)) for k in range(clock.steps)))


def test_rows_follow_the_shape_of_each_stretch() -> None:
    config = two({"a": 1, "b": 1}, batch_size={"piecewise": {"values": {"0%": 4, "50%": 12}}})
    plan = plan_of(config)
    expected = sum(plan.schedule.phases[0].state.data.shape(k).rows for k in range(plan.schedule.steps))
    (rows,) = read(config)
    assert sum(rows.values()) == pytest.approx(expected)


def test_what_does_not_repeat_and_does_not_suffice_is_refused_at_its_source() -> None:
    (problem,) = problems_of(base(data={"sources": {"a": memory(0, repeat=False)}, "batch_size": 4000, "seq_len": 4}))
    assert problem.path == "data.sources.a" and problem.where is not None
