"""A torch optimizer by name: the set it holds, its state, and what it counts in its groups."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any

import pytest
import torch
from small_planes import FALLING, adam, copies, named, state, step
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from stackwise.contracts.protocols import ParameterGroup
from stackwise.curriculum.parts import Part
from stackwise.errors import ProviderError, UserError
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.optimizer.plane import OptimizerPlane


class Counting(torch.optim.SGD):
    """Counts in each torch group the steps times the number of its parameters."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is ever given
        super().step()
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + len(group["params"])


@pytest.mark.parametrize("fault", ["one missing", "one foreign", "one twice"])
def test_an_optimizer_over_other_parameters_is_its_providers_fault(fault: str) -> None:
    def wrong(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        parameters = list(groups[0].parameters.values())
        optimizer = torch.optim.SGD(parameters[1:] if fault == "one missing" else parameters, lr=1)
        if fault == "one foreign":
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        if fault == "one twice":
            optimizer.param_groups.append({**optimizer.param_groups[0], "params": parameters[:1]})
        return optimizer

    with pytest.raises(ProviderError, match="must hold each trainable parameter once"):
        OptimizerPlane(wrong).enter(state(), named("a", "b"), 0.0)


def test_a_finished_optimizer_over_other_parameters_is_the_users_fault() -> None:
    parameters = named("a", "b")
    with pytest.raises(UserError, match="missing \\['b'\\]"):
        OptimizerPlane.of(torch.optim.SGD([parameters["a"]], lr=1), parameters)


def test_state_goes_back_to_its_name_wherever_the_parameter_stands_in_the_list() -> None:
    plane, parameters = OptimizerPlane(adam), named("a", "b")
    plane.enter(state(), parameters, 0.0)
    step(plane, {"a": 1.0, "b": 2.0})
    saved = copies(plane.state_by_name())
    other, turned = OptimizerPlane(adam), named("b", "a")
    other.enter(state(), turned, 0.0)
    other.load_state_by_name(saved)
    for name, gradient in (("a", 1.0), ("b", 2.0)):
        assert float(other.optimizer.state[turned[name]]["exp_avg"][0]) == pytest.approx(0.1 * gradient)


def test_state_of_another_shape_is_refused_and_nothing_is_written() -> None:
    plane = OptimizerPlane(adam)
    plane.enter(state(), named("a", "b"), 0.0)
    with pytest.raises(UserError, match=r"saved exp_avg of b has shape \(3,\), the parameter has \(2,\)"):
        plane.load_state_by_name({"a": {"exp_avg": torch.zeros(2)}, "b": {"exp_avg": torch.zeros(3)}})
    assert not plane.state_by_name()


def test_torch_groups_of_one_name_each_keep_their_own_count() -> None:
    def of_two(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        (group,) = groups
        halves = [{n: p for n, p in group.parameters.items() if (n == "a") is first} for first in (True, False)]
        return Counting([{"params": list(half.items()), "group": group.name, **group.values} for half in halves])

    plane, parameters = OptimizerPlane(of_two), named("a", "b", "c")
    plane.enter(state(), parameters, 0.0)
    step(plane)
    kept = {"a": parameters["a"], "b": parameters["b"]}
    plane.enter(state(), kept, 0.5, receipt=ModelReceipt(adopted={"a": "a", "b": "b"}, dropped=("c",)))
    assert [group["count"] for group in plane.optimizer.param_groups] == [1, 2]


@pytest.mark.parametrize("late", [True, False])
def test_a_group_that_cannot_have_one_count_is_refused(late: bool) -> None:
    def counting(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        return Counting([{"params": list(g.parameters.items()), "group": g.name, **g.values} for g in groups])

    plane, parameters = OptimizerPlane(counting), named("a", "b")
    plane.enter(state() if late else state(("one", ("a",), FALLING)), parameters, 0.0)
    step(plane)
    plane.optimizer.param_groups[0]["count"] += 1  # apart from that of a second group
    receipt = ModelReceipt(adopted={"a": "a", "b": "b"}, fresh=("c",) if late else ())
    with pytest.raises(UserError, match="begins at this boundary" if late else "counted apart"):
        plane.enter(state(), {**parameters, **(named("c") if late else {})}, 0.5, receipt=receipt)


def test_what_is_thawed_goes_on_with_its_count_and_rule_also_when_saved_between() -> None:
    def of_rules(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        powers: dict[str, dict[str, int]] = {"default": {"step": 0, "exp_avg": 1, "exp_avg_sq": 2}, "first": {"exp_avg": 1}}
        optimizer = adam(part, t, groups)
        for group in optimizer.param_groups:
            group["moments"] = powers[group["group"]]
        return optimizer

    def walked(saved: bool) -> OptimizerPlane:
        plane, parameters = OptimizerPlane(of_rules), named("a", "b")
        plane.enter(state(), parameters, 0.0)
        step(plane)
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


def test_an_optimizer_with_a_closure_or_for_sparse_gradients_is_refused_with_the_way_out() -> None:
    for kind, way_out in ((torch.optim.LBFGS, "AdamW or SGD"), (torch.optim.SparseAdam, r"torch\.optim\.Adam$")):
        parameters = named("a")
        with pytest.raises(UserError, match=way_out):
            OptimizerPlane.of(kind(parameters.values()), parameters)


def test_what_a_users_own_callable_leaves_out_is_no_providers_fault() -> None:
    def forgetful(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        return torch.optim.SGD([groups[0].parameters["a"]], lr=1)

    for given, fault in ((None, ProviderError), (object(), UserError)):
        with pytest.raises(fault, match="missing"):
            OptimizerPlane(forgetful).enter(state(part=Part(kind="optimizer", id="o", given=given)), named("a", "b"), 0.0)


def records(plane: OptimizerPlane, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many records for a profiler one step opens."""
    opened = []
    original = torch.autograd.profiler.record_function

    def counted(name: str) -> Any:
        opened.append(name)
        return original(name)

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd.profiler, "record_function", counted)
        step(plane)
    return len(opened)


def test_a_step_opens_no_record_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = OptimizerPlane(adam)
    plane.enter(state(), named("a", "b"), 0.0)
    plane.apply_values(0.0)
    assert records(plane, monkeypatch) == 0
    with torch.autograd.profiler.profile() as profile:
        assert records(plane, monkeypatch) == 1
    assert any(event.name.startswith("Optimizer.step#") for event in profile.function_events)


@pytest.mark.parametrize("where", ["before", "after", "before, everywhere", "after, everywhere", "in its place"])
def test_whatever_is_hooked_into_a_step_or_put_in_its_place_is_called(where: str) -> None:
    plane, parameters, called = OptimizerPlane(adam), named("a", "b"), []
    plane.enter(state(), parameters, 0.0)
    plane.apply_values(0.0)
    optimizer = plane.optimizer
    original = optimizer.step

    def hook(*arguments: object) -> None:
        called.append(where)

    def replacement() -> None:
        called.append(where)
        original()

    removes: Any = None
    match where:
        case "before":
            removes = optimizer.register_step_pre_hook(hook)
        case "after":
            removes = optimizer.register_step_post_hook(hook)
        case "before, everywhere":
            removes = register_optimizer_step_pre_hook(hook)
        case "after, everywhere":
            removes = register_optimizer_step_post_hook(hook)
        case _:
            optimizer.step = replacement  # type: ignore[method-assign]  # as a scheduler of torch's does
    step(plane)
    assert called == [where]
    assert all(parameter[0] < 1 for parameter in parameters.values())
    if removes is not None:
        removes.remove()
        step(plane)
        assert called == [where]


class Clamped(torch.optim.Adam):
    """Its own step looks like torch's wrapper of the one that it calls."""

    @wraps(torch.optim.Adam.step)
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is ever given
        super().step()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.clamp_(-0.5, 0.5)


def test_a_step_that_calls_itself_as_torchs_does_is_called_whole() -> None:
    torch.optim.Adam([nn.Parameter(torch.ones(1))])  # now torch has wrapped the step of Adam
    parameters = named("a")
    plane = OptimizerPlane.of(Clamped(parameters.values()), parameters)
    parameters["a"].grad = torch.ones(2)
    plane.step(0.0)
    assert parameters["a"].tolist() == [0.5, 0.5]


def test_a_class_that_gets_another_step_later_is_called_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    called, parameters = [], named("a")
    plane = OptimizerPlane.of(torch.optim.Adam(parameters.values()), parameters)
    original = torch.optim.Adam.step

    @wraps(original)
    def logged(self: torch.optim.Adam) -> None:
        called.append(self)
        original(self)

    monkeypatch.setattr(torch.optim.Adam, "step", logged)
    parameters["a"].grad = torch.ones(2)
    plane.step(0.0)
    assert called == [plane.optimizer]
