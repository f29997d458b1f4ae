"""The optimizer plane: groups, followed values, and one set of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import schedulefree
import torch
from torch import nn

from stackwise.contracts.growth import CopyOf
from stackwise.contracts.protocols import ParameterGroup
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import GroupState, OptimizerState
from stackwise.curriculum.transitions import Enter
from stackwise.errors import ProviderError, SelectorError, UserError
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.optimizer.groups import group_parameters
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.timeline.schedules import Curve, Knot

FALLING = Curve((Knot(0.0, 1.0, "linear"), Knot(1.0, 0.0, "hold")))


def named(*names: str) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(2)) for name in names}


def state(*groups: tuple[str, tuple[str, ...], Curve], lr: Curve = FALLING) -> OptimizerState:
    declared = [GroupState(name=name, select=select, curves={"lr": curve}) for name, select, curve in groups]
    return OptimizerState(part=Part(kind="optimizer", id="o"), groups=(*declared, GroupState(name="default", select=(), curves={"lr": lr})))


def build(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    return torch.optim.Adam([{"params": list(g.parameters.items()), "group": g.name, **g.values} for g in groups])


def stepped(plane: OptimizerPlane) -> None:
    for parameter in plane.parameters:
        parameter.grad = torch.ones_like(parameter)
    plane.optimizer.step()


def test_the_first_group_that_selects_a_parameter_takes_it_and_the_rest_is_default() -> None:
    groups = group_parameters(state(("one", ("a",), FALLING), ("two", ("a.x", "b"), FALLING)), named("a.x", "a.y", "b.x", "c"), 0.0)
    assert [(group.name, list(group.parameters)) for group in groups] == [("one", ["a.x", "a.y"]), ("two", ["b.x"]), ("default", ["c"])]


def test_a_group_that_takes_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.groups\.two selects only parameters that groups before it"):
        group_parameters(state(("one", ("a",), FALLING), ("two", ("a.x",), FALLING)), named("a.x", "b"), 0.0)
    with pytest.raises(SelectorError, match="matches no parameter"):
        group_parameters(state(("one", ("z",), FALLING)), named("a"), 0.0)


def test_every_group_follows_its_own_curve_and_the_rate_told_is_the_default_one() -> None:
    plane = OptimizerPlane(build)
    plane.enter(state(("one", ("a",), Curve.constant(0.5))), named("a", "b"), 0.0)
    told = []
    for k in range(4):
        plane.apply_values(k / 4)
        told.append(([group["lr"] for group in plane.optimizer.param_groups], plane.lr))
    assert told == [([0.5, 1 - k / 4], 1 - k / 4) for k in range(4)]


def test_values_fixed_by_the_optimizer_are_left_alone() -> None:
    def fixed(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        optimizer = build(part, t, groups)
        optimizer.param_groups[0] |= {"fixed": ("lr",), "lr": 9.0}
        return optimizer

    plane = OptimizerPlane(fixed)
    plane.enter(state(), named("a"), 0.0)
    plane.apply_values(0.5)
    assert plane.optimizer.param_groups[0]["lr"] == 9.0


@pytest.mark.parametrize("fault", ["one missing", "one foreign", "one twice"])
def test_an_optimizer_over_other_parameters_is_its_providers_fault(fault: str) -> None:
    def wrong(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        parameters = list(groups[0].parameters.values())
        made = torch.optim.SGD(parameters[1:] if fault == "one missing" else parameters, lr=1)
        if fault == "one foreign":
            made.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        if fault == "one twice":
            made.param_groups.append({**made.param_groups[0], "params": parameters[:1]})
        return made

    with pytest.raises(ProviderError, match="must hold each trainable parameter once"):
        OptimizerPlane(wrong).enter(state(), named("a", "b"), 0.0)


def crossed(moments: Any, receipt: ModelReceipt, after: dict[str, nn.Parameter]) -> tuple[OptimizerPlane, Any, Any]:
    plane, before = OptimizerPlane(build), named("a", "b")
    plane.enter(state(), before, 0.0)
    stepped(plane)
    held = {name: {key: torch.as_tensor(v).clone() for key, v in entries.items()} for name, entries in plane.state_by_name().items()}
    after = {name: before.get(name, parameter) for name, parameter in after.items()}
    return plane, plane.enter(state(), after, 0.5, receipt=receipt, enter=Enter(moments=moments)), held


@pytest.mark.parametrize("moments", ["copy", "reset"])
def test_adopted_copied_fresh_and_dropped_are_counted_and_carried(moments: str) -> None:
    receipt = ModelReceipt(adopted={"a": "a"}, copied={"c": CopyOf(source="a", index={0: (1, 0)})}, fresh=("d",), dropped=("b",))
    plane, done, held = crossed(moments, receipt, named("a", "c", "d"))
    now = plane.state_by_name()
    assert torch.equal(now["a"]["exp_avg"], held["a"]["exp_avg"])
    assert ("c" in now) == (moments == "copy") and "d" not in now and "b" not in now
    assert (done.kept, done.copied, done.dropped) == (1, int(moments == "copy"), 1)
    if moments == "copy":
        assert torch.equal(now["c"]["exp_avg"], held["a"]["exp_avg"][[1, 0]]) and int(now["c"]["step"]) == 1


def test_a_frozen_parameter_that_moves_takes_its_parked_state_with_it() -> None:
    thawed = named("c")
    thawed["c"].requires_grad_(False)
    plane, done, held = crossed(
        "copy", ModelReceipt(adopted={"a": "a"}, copied={"c": CopyOf(source="b")}, dropped=()), {**named("a"), **thawed}
    )
    assert (done.kept, done.copied, done.dropped) == (1, 1, 0)
    thawed["c"].requires_grad_(True)
    plane.enter(state(), {"a": plane.parameters[0], **thawed}, 0.6, receipt=ModelReceipt(adopted={"a": "a", "c": "c"}))
    assert torch.equal(plane.optimizer.state[thawed["c"]]["exp_avg"], held["b"]["exp_avg"])


def test_an_unchanged_crossing_keeps_the_optimizer_itself() -> None:
    plane, parameters = OptimizerPlane(build), named("a", "b")
    plane.enter(state(), parameters, 0.0)
    stepped(plane)
    optimizer = plane.optimizer
    done = plane.enter(state(lr=Curve.constant(3.0)), parameters, 0.5, receipt=ModelReceipt(adopted={"a": "a", "b": "b"}))
    plane.apply_values(0.5)
    assert plane.optimizer is optimizer and (done.kept, done.copied, done.dropped) == (2, 0, 0)
    assert plane.lr == 3.0


class Counting(torch.optim.SGD):
    """Counts in each torch group the steps times the number of its parameters."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is ever given
        super().step()
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + len(group["params"])


def test_torch_groups_of_one_name_each_keep_their_own_count() -> None:
    def of_two(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        (group,) = groups
        halves = [{n: p for n, p in group.parameters.items() if (n == "a") is first} for first in (True, False)]
        return Counting([{"params": list(half.items()), "group": group.name, **group.values} for half in halves])

    plane, parameters = OptimizerPlane(of_two), named("a", "b", "c")
    plane.enter(state(), parameters, 0.0)
    stepped(plane)
    kept = {"a": parameters["a"], "b": parameters["b"]}
    plane.enter(state(), kept, 0.5, receipt=ModelReceipt(adopted={"a": "a", "b": "b"}, dropped=("c",)))
    assert [group["count"] for group in plane.optimizer.param_groups] == [1, 2]


def test_what_is_thawed_goes_on_with_the_count_and_the_rule_it_was_frozen_with_also_when_it_was_saved_between() -> None:
    def of_rules(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        powers: dict[str, dict[str, int]] = {"default": {"step": 0, "exp_avg": 1, "exp_avg_sq": 2}, "first": {"exp_avg": 1}}
        made = build(part, t, groups)
        for group in made.param_groups:
            group["moments"] = powers[group["group"]]
        return made

    def walked(saved: bool) -> OptimizerPlane:
        plane, parameters = OptimizerPlane(of_rules), named("a", "b")
        plane.enter(state(), parameters, 0.0)
        stepped(plane)
        plane.optimizer.param_groups[0]["count"] = 7
        parameters["a"].requires_grad_(False)
        plane.enter(state(), parameters, 0.3, receipt=ModelReceipt(adopted={"a": "a", "b": "b"}))
        if saved:
            old, plane = plane.state_dict(), OptimizerPlane(of_rules)
            plane.enter(state(), parameters, 0.3)
            plane.load_state_dict(old)
        parameters["a"].requires_grad_(True)
        plane.enter(state(("first", ("a",), FALLING)), parameters, 0.6, receipt=ModelReceipt(adopted={"a": "a", "b": "b"}))
        return plane

    for plane in (walked(saved=False), walked(saved=True)):
        assert [group["count"] for group in plane.optimizer.param_groups] == [7, 7]
        assert {name: set(entries) for name, entries in plane.state_by_name().items()} == {
            "a": {"exp_avg"},
            "b": {"step", "exp_avg", "exp_avg_sq"},
        }


def test_where_another_class_comes_of_the_same_component_what_trained_elsewhere_is_left_at_what_was_judged() -> None:

    made = iter([schedulefree.AdamWScheduleFree, torch.optim.Adam])

    def changing(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = next(made)([{"params": list(g.parameters.values()), "group": g.name} for g in groups], lr=0.1)
        return optimizer

    plane, parameters = OptimizerPlane(changing), named("a")
    plane.enter(state(), parameters, 0.0)
    for k in range(3):
        plane.apply_values(k / 4)
        stepped(plane)
    with plane.evaluating():
        judged = parameters["a"].detach().clone()
    assert not torch.equal(judged, parameters["a"])
    after = OptimizerState(part=Part(kind="optimizer", id="o", options="other"), groups=state().groups)
    done = plane.enter(after, parameters, 0.9, receipt=ModelReceipt(adopted={"a": "a"}))
    torch.testing.assert_close(parameters["a"].detach(), judged, rtol=0, atol=1e-6)
    assert (done.kept, done.dropped) == (0, 1) and not plane.state_by_name()
