"""What a boundary changes, which block comes from which, and whether the function stays: declared, before anything is built."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_walks import base, plan_of, problems_of

from stackwise.plan.blocks import keeps_every_block, needs_residual_outputs

DEEPER = {"model": {"rack": {"stacks": [{"base": 3}]}}}


def crossing(second: dict[str, Any], **sections: Any) -> Any:
    """The transition into a second phase."""
    plan = plan_of(base(phases={"one": {"until": "50%"}, "two": second}, **sections))
    return plan.schedule.phases[1].transition


def grown(use: str, **options: Any) -> Any:
    return crossing({**DEEPER, "enter": {"growth": {"use": use, **options}}})


def test_a_phase_that_changes_values_alone_leaves_model_and_function_alone() -> None:
    crossed = crossing({"optimizer": {"lr": 0.5}})
    assert [change.path for change in crossed.changes] == ["optimizer.lr"]
    assert crossed.preserves_function and not crossed.touches_function and crossed.blocks == {} and crossed.notes == ()


def test_copied_blocks_keep_the_old_ones_and_not_the_function() -> None:
    crossed = grown("transformer.stack")
    origins = {block: origin.source for block, origin in crossed.blocks.items()}
    assert origins[("base", 0)] == ("base", 0) and set(origins) == {("base", i) for i in range(3)}
    assert all(source is not None and source[0] == "base" for source in origins.values())
    assert crossed.touches_function and not crossed.preserves_function and not needs_residual_outputs(crossed.blocks)


def test_identity_blocks_keep_the_function_and_need_residual_outputs() -> None:
    crossed = grown("transformer.identity")
    assert crossed.preserves_function and needs_residual_outputs(crossed.blocks)


def test_a_block_of_nowhere_and_an_operator_with_nothing_to_do_are_refused_at_their_keys() -> None:
    phases = {"one": {"until": "50%"}, "two": DEEPER}
    assert [problem.path for problem in problems_of(base(phases=phases))] == ["model.rack.stacks"]
    idle = {"one": {"until": "50%"}, "two": {"enter": {"growth": {"use": "transformer.stack"}}}}
    assert [problem.path for problem in problems_of(base(phases=idle))] == ["enter.growth"]


@pytest.mark.parametrize(
    ("delta", "function", "notes"),
    [
        ({"enter": {"fresh": ["head"]}}, False, 1),
        ({"model": {"head": {"use": "transformer.lm", "tied": False}}}, False, 0),
        ({"optimizer": {"use": "optim.sgd", "lr": 0.1}}, True, 1),
        ({"enter": {"rewarm": "2 steps"}}, True, 1),
    ],
)
def test_what_is_lost_on_purpose_is_noted(delta: dict[str, Any], function: bool, notes: int) -> None:
    crossed = crossing(delta)
    assert crossed.preserves_function is function and len(crossed.notes) == notes


def test_a_stack_that_loses_blocks_does_not_keep_them_all() -> None:
    plan = plan_of(base(phases={"one": {"until": "50%"}, "two": {"model": {"rack": {"stacks": [{"base": 1}]}}}}))
    first, second = (phase.state.model for phase in plan.schedule)
    crossed = plan.schedule.phases[1].transition
    assert not keeps_every_block(first, crossed.blocks) and keeps_every_block(second, crossed.blocks)
    assert not crossed.preserves_function
