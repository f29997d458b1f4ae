"""Which parameters learn together, and the values they follow."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from small_planes import FALLING, adam, named, state

from stackwise.contracts.protocols import ParameterGroup
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import GroupState, LRScale
from stackwise.curriculum.transitions import Enter
from stackwise.errors import SelectorError, UserError
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.optimizer.groups import group_parameters
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.timeline.schedules import Curve, Knot

RISING = Curve((Knot(0.0, 0.0, "linear"), Knot(0.5, 1.0, "hold")))


def rates(plane: OptimizerPlane) -> dict[str, float]:
    return {group["group"]: group["lr"] for group in plane.optimizer.param_groups}


def test_the_first_group_that_selects_a_parameter_takes_it_and_the_rest_is_default() -> None:
    groups = group_parameters(state(("one", ("a",), FALLING), ("two", ("a.x", "b"), FALLING)), named("a.x", "a.y", "b.x", "c"), 0.0)
    assert [(group.name, list(group.parameters)) for group in groups] == [("one", ["a.x", "a.y"]), ("two", ["b.x"]), ("default", ["c"])]


def test_a_group_that_takes_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.groups\.two selects only parameters that groups before it"):
        group_parameters(state(("one", ("a",), FALLING), ("two", ("a.x",), FALLING)), named("a.x", "b"), 0.0)
    with pytest.raises(SelectorError) as error:
        group_parameters(state(("one", ("z",), FALLING)), named("a"), 0.0)
    assert error.value.selector == "z"


def test_a_group_of_frozen_parameters_alone_is_left_out() -> None:
    groups = group_parameters(state(("one", ("b",), FALLING)), named("a"), 0.0, frozen=["b"])
    assert [group.name for group in groups] == ["default"]


def test_every_group_follows_its_own_curve_and_the_rate_of_the_rest_is_the_planes() -> None:
    plane = OptimizerPlane(adam)
    plane.enter(state(("one", ("a",), Curve.constant(0.5))), named("a", "b"), 0.0)
    for k in range(4):
        plane.apply_values(k / 4)
        assert rates(plane) == {"one": 0.5, "default": 1 - k / 4} and plane.default_group["lr"] == 1 - k / 4


def test_the_size_of_the_model_the_reaction_and_the_warm_up_are_factors_on_rates_alone() -> None:
    class Quarter:
        factor = 0.25

    def decaying(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        return torch.optim.AdamW([{"params": list(g.parameters.items()), "group": g.name, **g.values} for g in groups])

    plane, parameters = OptimizerPlane(decaying, lambda part: Quarter()), named("a", "b")  # type: ignore[arg-type,return-value]  # a factor will do
    scale = LRScale(by="parameters", exponent=1.0, base=2.0)
    rest = GroupState(name="default", select=(), curves={"lr": Curve.constant(1.0), "weight_decay": Curve.constant(0.5)})
    declared = state(groups=(rest,), lr_scaling=(scale,), reaction=Part(kind="reaction", id="r"))
    plane.enter(declared, parameters, 0.25, receipt=ModelReceipt(fresh=("b",)), enter=Enter(rewarm=RISING))
    plane.apply_values(0.25)
    assert rates(plane) == {"default": 2 * 0.25, "default.fresh": 0.5 * 2 * 0.25}
    assert {group["weight_decay"] for group in plane.optimizer.param_groups} == {0.5}


def test_at_entry_a_curve_is_evaluated_twice_and_a_constant_one_never_again() -> None:
    asked: list[float] = []

    class Counted(Curve):
        def __call__(self, t: float) -> float:
            asked.append(t)
            return super().__call__(t)

    plane = OptimizerPlane(adam)
    plane.enter(state(lr=Counted(Curve.constant(0.5).knots)), named("a"), 0.0)
    for t in (0.0, 0.1, 0.2):
        plane.apply_values(t)
    assert asked == [0.0, 0.0]


def test_values_fixed_by_the_optimizer_are_left_alone() -> None:
    def fixed(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        optimizer = adam(part, t, groups)
        optimizer.param_groups[0] |= {"fixed": ("lr",), "lr": 9.0}
        return optimizer

    plane = OptimizerPlane(fixed)
    plane.enter(state(), named("a"), 0.0)
    plane.apply_values(0.5)
    assert plane.optimizer.param_groups[0]["lr"] == 9.0
