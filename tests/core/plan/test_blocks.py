"""Which old block each new one comes from, and what a gate on it has to do."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_walks import base, plan_of, problems_of

from stackwise.contracts.growth import BlockOrigin
from stackwise.plan.blocks import needs_residual_outputs


def gated(gate: Any) -> dict[str, Any]:
    """Two blocks that become three, the third behind a gate."""
    growth = {"use": "transformer.gated", "gate": gate}
    two = {"model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": growth}}
    return base(phases={"one": {"until": "50%"}, "two": two})


def test_a_gate_that_rises_from_nothing_to_one_keeps_the_function() -> None:
    crossed = plan_of(gated({"linear": {"from": 0, "to": 1, "over": "phase"}})).schedule.phases[1].transition
    assert crossed is not None and crossed.preserves_function
    assert {block for block, origin in crossed.blocks.items() if origin.gated} == {("base", 2)}


@pytest.mark.parametrize(("start", "end", "path"), [(0.5, 1, "enter.growth"), (0, 0.5, "enter.growth.gate")])
def test_a_gate_that_makes_the_function_jump_is_refused(start: float, end: float, path: str) -> None:
    gate = {"linear": {"from": start, "to": end, "over": "phase"}}
    assert [problem.path for problem in problems_of(gated(gate))] == [path]


def test_an_unknown_operator_is_the_only_mistake() -> None:
    growth = {"use": "transformer.doubling"}
    phases = {"one": {"until": "50%"}, "two": {"model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": growth}}}
    assert [problem.path for problem in problems_of(base(phases=phases))] == ["enter.growth.use"]


def test_residual_outputs_are_needed_by_gates_and_by_blocks_that_start_at_zero() -> None:
    origins = {"plain": BlockOrigin(source=None), "zero": BlockOrigin(source=None, zero_residual=True)}
    assert [needs_residual_outputs({("s", 0): origin}) for origin in origins.values()] == [False, True]
    assert needs_residual_outputs({("s", 0): BlockOrigin(source=("s", 0), gated=True)})
