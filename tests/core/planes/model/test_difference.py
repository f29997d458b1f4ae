"""What a boundary changes, and growth that is refused before a step has run."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from own_blocks import Rack, config, linear
from tiny_walks import base, machine_of, plan_of
from torch import nn

from stackwise import Built, ConfigError, RackSpec
from stackwise.planes.model.difference import Boundary, build_steps, goes_on, replaced


class Naming(Rack):
    """A rack that names what writes into the residual stream."""

    def to_spec(self) -> RackSpec:
        return RackSpec(stacks={"base": len(self.stacks["base"])}, residual_outputs=("weight",))


def made_by_a_function(**options: Any) -> nn.Module:
    return Rack(**options)


def named_by_a_function(**options: Any) -> nn.Module:
    return Naming(**options)


def grown(make: Any) -> dict[str, Any]:
    declared = config()
    rack = Built(make, stacks=[{"base": 2}], block=linear)
    deeper = {"model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": {"use": "transformer.identity"}}}
    return {**declared, "model": {**declared["model"], "rack": rack}, "phases": {"one": {"until": "6 steps"}, "two": deeper}}


@pytest.mark.parametrize("make", [Rack, functools.partial(Rack)])
def test_a_class_that_names_no_residual_outputs_is_refused_by_the_plan(make: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(grown(make))
    assert [problem.path for problem in caught.value.problems] == ["enter.growth"]


def test_a_function_whose_module_names_none_is_refused_at_assembly() -> None:
    plan_of(grown(made_by_a_function))
    with pytest.raises(ConfigError) as caught:
        machine_of(grown(made_by_a_function))
    assert [problem.path for problem in caught.value.problems] == ["phases.two.enter.growth"]


@pytest.mark.parametrize("make", [Naming, named_by_a_function])
def test_a_module_that_names_them_grows(make: Any) -> None:
    machine = machine_of(grown(make))
    assert sum(1 for _ in machine.train()) > 12


def test_plan_price_and_run_ask_one_operator() -> None:
    plan = plan_of(grown(Naming))
    transition = plan.schedule.phases[1].transition
    assert transition is not None and transition.operator is not None
    assert Boundary.of(plan.schedule.phases[1]).growth is transition.operator


def test_a_part_is_built_anew_where_its_structure_or_its_dtype_changes() -> None:
    phases = {
        "one": {"until": "2 steps"},
        "two": {"until": "4 steps", "optimizer": {"lr": 1e-4}},
        "three": {"until": "6 steps", "model": {"rack": {"stacks": [{"base": 1}]}}},
        "four": {"until": "8 steps", "model": {"head": {"init_std": 0.5, "tied": False}}},
        "five": {"until": "10 steps", "model": {"precision": {"embedding": "bfloat16"}}},
    }
    compiled = plan_of(base(phases={**phases, "six": {}})).schedule.phases
    assert {path: step for path, step in build_steps(compiled).items() if "." not in path} == {"embedding": 8, "rack": 4, "head": 6}
    states = [phase.state.model for phase in compiled if phase.state is not None]
    assert goes_on(states[0], states[1], "rack") and not goes_on(states[1], states[2], "rack")
    assert replaced(states[2], states[3]) == () and not Boundary().rebuilds(states[0], states[1])
