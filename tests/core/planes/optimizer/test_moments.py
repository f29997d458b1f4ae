"""Moments at a boundary: kept, copied through the map, parked, dropped; fresh parameters count from their own first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import schedulefree
import torch
from small_planes import adam, copies, named, state, step
from torch import nn

from stackwise.contracts.growth import CopyOf
from stackwise.contracts.protocols import ParameterGroup
from stackwise.curriculum.parts import Part
from stackwise.curriculum.transitions import Enter
from stackwise.errors import UserError
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.optimizer.moments import Crossing, Kept
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.timeline.schedules import Curve


def crossed(moments: Any, receipt: ModelReceipt, after: dict[str, nn.Parameter]) -> tuple[OptimizerPlane, Any, Any]:
    plane, before = OptimizerPlane(adam), named("a", "b")
    plane.enter(state(), before, 0.0)
    step(plane, {"a": 1.0, "b": 2.0})
    held = copies(plane.state_by_name())
    after = {name: before.get(name, parameter) for name, parameter in after.items()}
    return plane, plane.enter(state(), after, 0.5, receipt=receipt, enter=Enter(moments=moments)), held


@pytest.mark.parametrize("moments", ["copy", "reset"])
def test_adopted_copied_fresh_and_dropped_are_counted_and_carried(moments: str) -> None:
    receipt = ModelReceipt(adopted={"a": "a"}, copied={"c": CopyOf(source="a", index={0: (1, 0)})}, fresh=("d",), dropped=("b",))
    plane, crossing, held = crossed(moments, receipt, named("a", "c", "d"))
    now = plane.state_by_name()
    assert torch.equal(now["a"]["exp_avg"], held["a"]["exp_avg"])
    assert ("c" in now) == (moments == "copy") and "d" not in now and "b" not in now
    assert (crossing.kept, crossing.copied, crossing.dropped) == (1, int(moments == "copy"), 1)
    if moments == "copy":
        assert torch.equal(now["c"]["exp_avg"], held["a"]["exp_avg"][[1, 0]]) and int(now["c"]["step"]) == 1


def test_the_first_update_of_a_fresh_parameter_is_one_learning_rate() -> None:
    """With an inherited step count and moments of zero it would be (1 - 0.9) / √(1 - 0.999) = 3.16 of them."""
    plane, parameters = OptimizerPlane(adam), named("a")
    plane.enter(state(lr=Curve.constant(0.125)), parameters, 0.0)
    for _ in range(100):
        step(plane)
    parameters |= named("b")
    plane.enter(state(lr=Curve.constant(0.125)), parameters, 0.5, receipt=ModelReceipt(adopted={"a": "a"}, fresh=("b",)))
    plane.apply_values(0.5)
    step(plane)
    torch.testing.assert_close(parameters["b"].detach(), torch.full((2,), 1 - 0.125), rtol=0, atol=1e-6)


def test_a_second_moment_follows_the_square_of_what_the_gradient_follows() -> None:
    origin = CopyOf(source="a", index={0: (0, 1, 0)}, gradient={0: (0.5, 1.0, 0.5)})
    kept = {"a": Kept(entries={"step": torch.tensor(3.0), "exp_avg": torch.tensor([2.0, 4.0]), "exp_avg_sq": torch.tensor([8.0, 16.0])})}
    carried = Crossing(receipt=ModelReceipt(copied={"b": origin})).carry(kept, {"b": torch.zeros(3)}, {}).entries["b"]
    assert carried["exp_avg"].tolist() == [1.0, 4.0, 1.0]
    assert carried["exp_avg_sq"].tolist() == [2.0, 16.0, 2.0] and float(carried["step"]) == 3


def test_an_entry_that_nobody_explains_cannot_follow_a_map_so_its_parameter_starts_anew() -> None:
    kept = {"a": Kept(entries={"preconditioner": torch.ones(2)})}
    for origin, expected in ((CopyOf(source="a", index={0: (1, 0)}), set()), (CopyOf(source="a"), {"b"})):
        carried = Crossing(receipt=ModelReceipt(copied={"b": origin})).carry(kept, {"b": torch.zeros(2)}, {})
        assert set(carried.entries) == expected and carried.receipt.dropped == 1 - len(expected)


@pytest.mark.parametrize(("moments", "expected"), [("copy", {"exp_avg"}), ("reset", set())])
def test_another_optimizer_goes_on_with_what_it_declares_and_nothing_else(moments: Any, expected: set[str]) -> None:
    kept = {"a": Kept(entries={"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)})}
    crossing = Crossing(receipt=ModelReceipt(adopted={"a": "a"}), same=False, moments=moments)
    assert set(crossing.carry(kept, {}, {"a": {"exp_avg": 1}}).entries.get("a", ())) == expected
    assert not crossing.carry(kept, {}, {}).entries


def test_a_frozen_parameter_that_moves_takes_its_parked_state_with_it() -> None:
    thawed = named("c")
    thawed["c"].requires_grad_(False)
    receipt = ModelReceipt(adopted={"a": "a"}, copied={"c": CopyOf(source="b")}, dropped=())
    plane, crossing, held = crossed("copy", receipt, {**named("a"), **thawed})
    assert (crossing.kept, crossing.copied, crossing.dropped) == (1, 1, 0)
    thawed["c"].requires_grad_(True)
    plane.enter(state(), {"a": plane.parameters[0], **thawed}, 0.6, receipt=ModelReceipt(adopted={"a": "a", "c": "c"}))
    assert torch.equal(plane.optimizer.state[thawed["c"]]["exp_avg"], held["b"]["exp_avg"])


def test_a_frozen_parameter_stays_and_keeps_its_moments_to_the_bit() -> None:
    plane, parameters = OptimizerPlane(adam), named("a", "b")
    plane.enter(state(), parameters, 0.0)
    step(plane)
    parameters["b"].requires_grad_(False)
    plane.enter(state(), parameters, 0.3, receipt=ModelReceipt(adopted={"a": "a", "b": "b"}))
    weight, held = parameters["b"].detach().clone(), copies(plane.state_by_name())["b"]
    for _ in range(5):
        step(plane)
    assert torch.equal(parameters["b"], weight) and all(torch.equal(held[key], plane.state_by_name()["b"][key]) for key in held)
    assert [id(p) for group in plane.optimizer.param_groups for p in group["params"]] == [id(parameters["a"])]


def test_an_unchanged_crossing_keeps_the_optimizer_itself() -> None:
    plane, parameters = OptimizerPlane(adam), named("a", "b")
    plane.enter(state(), parameters, 0.0)
    step(plane)
    optimizer = plane.optimizer
    crossing = plane.enter(state(lr=Curve.constant(3.0)), parameters, 0.5, receipt=ModelReceipt(adopted={"a": "a", "b": "b"}))
    plane.apply_values(0.5)
    assert plane.optimizer is optimizer and (crossing.kept, crossing.copied, crossing.dropped) == (2, 0, 0)
    assert plane.default_group["lr"] == 3.0


def test_a_finished_optimizer_cannot_change_what_it_trains() -> None:
    parameters = named("a")
    plane = OptimizerPlane.of(torch.optim.SGD(parameters.values(), lr=1), parameters)
    with pytest.raises(UserError, match="give a Built"):
        plane.enter(state(), named("a", "b"), 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_the_class_changes_weights_that_trained_elsewhere_are_left_as_they_were_judged(dtype: torch.dtype) -> None:
    classes = iter([schedulefree.AdamWScheduleFree, torch.optim.Adam])

    def changing(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = next(classes)([{"params": list(g.parameters.values()), "group": g.name} for g in groups], lr=0.1)
        return optimizer

    plane, parameters = OptimizerPlane(changing), named("a", dtype=dtype)
    plane.enter(state(), parameters, 0.0)
    for k in range(3):
        plane.apply_values(k / 4)
        step(plane)
    with plane.evaluating():
        judged, master = parameters["a"].detach().clone(), plane.optimizer.param_groups[0]["params"][0].detach().clone()
    assert not torch.equal(judged, parameters["a"])
    after = state(part=Part(kind="optimizer", id="o", options="other"))
    crossing = plane.enter(after, parameters, 0.9, receipt=ModelReceipt(adopted={"a": "a"}))
    torch.testing.assert_close(parameters["a"].detach(), judged, rtol=0, atol=1e-6)
    torch.testing.assert_close(plane.optimizer.param_groups[0]["params"][0].detach(), master, rtol=0, atol=1e-6)
    assert (crossing.kept, crossing.dropped) == (0, 1) and not plane.state_by_name()
