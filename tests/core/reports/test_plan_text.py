"""What a plan says in words: mixtures at boundaries, what evaluations read, and what can hardly be meant."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from tiny_walks import base, memory, plan_of

from stackwise.assembly.pricing import price
from stackwise.plan import Plan
from stackwise.reports.plan_text import plan_as_json, plan_as_text
from stackwise.reports.remarks import MANY_EPOCHS, memory_here, remarks


def lines(plan: Plan) -> list[str]:
    return [line.strip() for line in plan_as_text(plan, price(plan)).splitlines()]


def two_phases(second: dict[str, Any], **sections: Any) -> Plan:
    data = {**base()["data"], "sources": {"a": memory(heldout=0.3)}}
    return plan_of(base(data=data, phases={"first": {"until": "50%"}, "second": second}, **sections))


def test_a_boundary_shows_the_old_and_the_new_mixture():
    added = two_phases({"data": {"sources": {"b": memory(seed=1)}, "mix": {"a": 3, "b": 1}}})
    assert "mixture: a → a 75%, b 25%" in lines(added)
    replaced = two_phases({"data": {"sources": {"a": None, "b": memory(seed=1)}}})
    assert "mixture: a → b" in lines(replaced)
    assert not any(line.startswith("mixture") for line in lines(two_phases({"optimizer": {"lr": 0.01}})))


def test_a_moving_mixture_is_read_on_both_sides_of_the_boundary():
    data = {**base()["data"], "sources": {"a": memory(), "b": memory(seed=1)}, "mix": {"a": 1, "b": {"linear": {"from": 0, "to": 1}}}}
    plan = plan_of(base(data=data, phases={"first": {"until": "50%"}, "second": {"data": {"mix": {"b": 3}}}}))
    weight = 5 / 12  # at step 5 of 12, the last of the first phase
    assert f"mixture: a {100 / (1 + weight):.3g}%, b {100 * weight / (1 + weight):.3g}% → a 25%, b 75%" in lines(plan)


def test_an_evaluation_says_what_it_reads():
    plan = two_phases({}, evaluate={"held": {"batches": 3, "batch_size": 2}, "own": {"sources": {"c": memory(seed=2)}, "seq_len": 6}})
    rows, length = base()["data"]["batch_size"], base()["data"]["seq_len"]
    assert f"reads 3 batches of 2 rows × {length} positions from held-out rows of the training sources: a" in lines(plan)
    assert f"reads 16 batches of {rows} rows × 6 positions from sources of its own: c" in lines(plan)
    assert plan_as_json(plan, price(plan))["evaluation_sources"] == {"held": ["a"], "own": ["c"]}


def test_a_usual_plan_is_not_remarked_upon():
    plan = two_phases({}, evaluate={"held": {"batches": 1}})
    assert remarks(plan, price(plan), memory_here()) == []


def test_an_optimizer_state_above_the_memory_is_remarked_upon():
    plan = two_phases({})
    prices = price(plan)
    assert prices[0].optimizer_bytes is not None
    assert remarks(plan, prices, prices[0].optimizer_bytes) == []
    (first, second) = remarks(plan, prices, prices[0].optimizer_bytes - 1)
    assert "'first'" in first and "'second'" in second and "optimizer state" in first


@pytest.mark.parametrize(("each", "count"), [(MANY_EPOCHS / 2, 1), (MANY_EPOCHS / 2 - 1, 0)])
def test_thousands_of_epochs_are_remarked_upon(each: float, count: int):
    plan = two_phases({})
    read = [attrs.evolve(cost, sources={"a": attrs.evolve(cost.sources["a"], epochs=each)}) for cost in price(plan)]
    assert len(remarks(plan, read, None)) == count


def test_a_phase_that_learns_nothing_is_remarked_upon():
    (remark,) = remarks(plan := two_phases({"optimizer": {"lr": 0}}), price(plan), None)
    assert "'second'" in remark and "learning rate is 0" in remark
    falling = two_phases({"optimizer": {"lr": {"wsd": {"peak": 1e-2, "warmup": "50%", "decay": "50%"}}}})
    assert remarks(falling, price(falling), None) == []


def test_an_evaluation_on_what_a_phase_no_longer_trains_on_is_remarked_upon():
    gone: dict[str, Any] = {"data": {"sources": {"a": None, "b": memory(seed=1)}}}
    plan = two_phases(gone, evaluate={"held": {"batches": 1}})
    (remark,) = remarks(plan, price(plan), None)
    assert "held" in remark and "'a'" in remark and "'second'" in remark
    own = two_phases(gone, evaluate={"held": {"batches": 1, "sources": {"c": memory(seed=2)}}})
    assert remarks(own, price(own), None) == []
    silent = two_phases({"data": {"sources": {"b": memory(seed=1)}, "mix": {"a": 0, "b": 1}}}, evaluate={"held": {"batches": 1}})
    assert len(remarks(silent, price(silent), None)) == 1
