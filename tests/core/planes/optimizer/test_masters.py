"""Sixteen bits: the optimizer steps a float32 master, and the parameter is the master rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from small_planes import adam, copies, named, state, step

from stackwise.contracts.growth import CopyOf
from stackwise.contracts.protocols import ParameterGroup
from stackwise.curriculum.parts import Part
from stackwise.errors import UserError
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.timeline.schedules import Curve

SMALL = state(lr=Curve.constant(1e-3))
"""Adam's update is 1e-3 here, below the half-ulp 2⁻⁹ of bfloat16 below 1.0."""

HALVES = [torch.bfloat16, torch.float16]


def entered(dtype: torch.dtype, *names: str) -> tuple[OptimizerPlane, dict[str, torch.nn.Parameter]]:
    plane, parameters = OptimizerPlane(adam), named(*names, dtype=dtype)
    plane.enter(SMALL, parameters, 0.0)
    plane.apply_values(0.0)
    return plane, parameters


def masters(plane: OptimizerPlane) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = plane.state_dict()["masters"]
    return {name: master.clone() for name, master in saved.items()}


@pytest.mark.parametrize("dtype", HALVES)
def test_updates_below_the_rounding_add_up_as_in_float32(dtype: torch.dtype) -> None:
    (narrow, held), (wide, own) = entered(dtype, "a"), entered(torch.float32, "a")
    for _ in range(40):
        step(narrow)
        step(wide)
    assert torch.equal(masters(narrow)["a"], own["a"].detach()) and torch.equal(held["a"].detach(), own["a"].detach().to(dtype))
    assert all(entry.dtype == torch.float32 for entry in narrow.state_by_name()["a"].values())


def test_gradients_of_micro_batches_are_summed_in_float32() -> None:
    plane, parameters = entered(torch.bfloat16, "a")
    for part in [1.0] + [2.0**-9] * 8:  # each of the small ones is half an ulp of 1.0
        (parameters["a"] * torch.tensor([part, part], dtype=torch.bfloat16)).sum().backward()
    assert parameters["a"].grad is not None and parameters["a"].grad.tolist() == [1 + 2.0**-6] * 2
    plane.step(0.0)
    assert float(plane.state_by_name()["a"]["exp_avg"][0]) == pytest.approx(0.1 * (1 + 2.0**-6), rel=1e-6)


def test_float32_parameters_have_no_master_and_are_stepped_themselves() -> None:
    plane, parameters = entered(torch.float32, "a")
    assert not masters(plane) and plane.optimizer.param_groups[0]["params"][0] is parameters["a"]


def test_a_master_survives_freezing_saving_and_thawing_to_the_bit() -> None:
    plane, parameters = entered(torch.bfloat16, "a", "b")
    step(plane)
    before = masters(plane)
    assert not torch.equal(before["a"], parameters["a"].detach().float())
    parameters["a"].requires_grad_(False)
    plane.enter(SMALL, parameters, 0.3, receipt=ModelReceipt(adopted={"a": "a", "b": "b"}))
    step(plane)
    saved = {**plane.state_dict(), "parameters": copies(plane.state_by_name())}
    plane = OptimizerPlane(adam)
    plane.enter(SMALL, parameters, 0.3)
    plane.load_state_dict(saved)
    parameters["a"].requires_grad_(True)
    plane.enter(SMALL, parameters, 0.6, receipt=ModelReceipt(adopted={"a": "a", "b": "b"}))
    assert torch.equal(masters(plane)["a"], before["a"])


def test_a_restored_plane_takes_the_same_steps() -> None:
    (one, mine), (other, yours) = entered(torch.bfloat16, "a"), entered(torch.bfloat16, "a")
    for _ in range(3):
        step(one)
    with torch.no_grad():
        yours["a"].copy_(mine["a"])
    other.load_state_dict({**one.state_dict(), "parameters": copies(one.state_by_name())})
    for _ in range(3):
        step(one)
        step(other)
        assert torch.equal(masters(one)["a"], masters(other)["a"]) and torch.equal(mine["a"], yours["a"])


def test_a_copy_has_the_master_of_its_source_and_what_the_boundary_set_anew_begins_there() -> None:
    plane, parameters = entered(torch.bfloat16, "a", "b")
    step(plane, {"a": 1.0, "b": -1.0})
    before = masters(plane)
    after = {**parameters, **named("c", "zeroed", dtype=torch.bfloat16)}
    with torch.no_grad():
        after["c"].copy_(after["a"])
        after["zeroed"].zero_()
        after["b"].fill_(3.0)  # as a merged adapter would
    copied = {"c": CopyOf(source="a"), "zeroed": CopyOf(source="a")}
    plane.enter(SMALL, after, 0.5, receipt=ModelReceipt(adopted={"a": "a", "b": "b"}, copied=copied, merged=("b",)))
    now = masters(plane)
    assert torch.equal(now["a"], before["a"]) and torch.equal(now["c"], before["a"])
    assert now["zeroed"].tolist() == [0.0, 0.0] and now["b"].tolist() == [3.0, 3.0]


def test_a_weight_that_becomes_sixteen_bits_wide_keeps_what_it_was_in_its_master() -> None:
    plane, parameters = entered(torch.float32, "a")
    step(plane)
    narrow = {"a": torch.nn.Parameter(parameters["a"].detach().to(torch.bfloat16))}
    receipt = ModelReceipt(copied={"a": CopyOf(source="a")}, recast={"a": torch.float32})
    plane.enter(SMALL, narrow, 0.5, receipt=receipt)
    assert torch.equal(masters(plane)["a"], parameters["a"].detach())
    assert plane.state_by_name()["a"]["exp_avg"].dtype == torch.float32


def test_what_an_optimizer_judges_elsewhere_is_judged_rounded_and_trains_on_to_the_bit() -> None:
    import schedulefree

    def free(part: Part, t: float, groups: Sequence[ParameterGroup]) -> Any:
        return schedulefree.AdamWScheduleFree([{"params": list(g.parameters.values()), "group": g.name} for g in groups], lr=0.1)

    plane, parameters = OptimizerPlane(free), named("a", dtype=torch.bfloat16)
    plane.enter(SMALL, parameters, 0.0)
    for _ in range(3):
        step(plane)
    before, own = masters(plane)["a"], parameters["a"].detach().clone()
    with plane.evaluating():
        judged = masters(plane)["a"]
        assert not torch.equal(judged, before) and torch.equal(parameters["a"].detach(), judged.to(torch.bfloat16))
    torch.testing.assert_close(masters(plane)["a"], before, rtol=0, atol=1e-6)
    assert torch.equal(parameters["a"].detach(), own)


def test_a_finished_optimizer_over_sixteen_bits_is_refused() -> None:
    parameters = named("a", dtype=torch.bfloat16)
    with pytest.raises(UserError, match="small updates are lost: give Built"):
        OptimizerPlane.of(torch.optim.SGD(parameters.values(), lr=1.0), parameters)
