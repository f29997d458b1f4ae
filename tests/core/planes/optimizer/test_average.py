"""The average of the weights against its own recursion, and who judges with it."""

from __future__ import annotations

import pytest
import torch
from small_planes import adam, named, state, step

from stackwise.contracts.growth import CopyOf
from stackwise.errors import UserError
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.timeline.schedules import Curve

AVERAGED = state(lr=Curve.constant(0.1), ema=Curve.constant(0.75))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_its_recursion_in_float32_whatever_the_weights_are_held_in(dtype: torch.dtype) -> None:
    plane, parameters = OptimizerPlane(adam), named("a", dtype=dtype)
    plane.enter(state(lr=Curve.constant(0.01), ema=Curve.constant(0.999)), parameters, 0.0)
    plane.apply_values(0.0)
    by_hand = parameters["a"].detach().double()
    for _ in range(50):
        step(plane)
        by_hand = 0.999 * by_hand + 0.001 * parameters["a"].detach().double()
    assert plane.average is not None
    average = plane.average.state_by_name()["a"]
    assert average.dtype == torch.float32
    torch.testing.assert_close(average.double(), by_hand, rtol=0, atol=1e-6)


def test_it_is_in_place_while_it_is_judged_and_the_weights_come_back() -> None:
    plane, parameters = OptimizerPlane(adam), named("a")
    plane.enter(AVERAGED, parameters, 0.0)
    step(plane)
    own = parameters["a"].detach().clone()
    with plane.evaluating("ema"):
        assert torch.equal(parameters["a"], plane.average.state_by_name()["a"]) and not torch.equal(parameters["a"], own)  # type: ignore[union-attr]
    assert torch.equal(parameters["a"], own)


def test_it_crosses_by_the_map_of_the_weights_and_begins_at_what_is_fresh_or_merged() -> None:
    plane, parameters = OptimizerPlane(adam), named("a", "b")
    plane.enter(AVERAGED, parameters, 0.0)
    step(plane)
    before = {name: average.clone() for name, average in plane.average.state_by_name().items()}  # type: ignore[union-attr]
    after = {**parameters, **named("c", "d")}
    receipt = ModelReceipt(adopted={"a": "a", "b": "b"}, copied={"c": CopyOf(source="a", index={0: (1, 0)})}, fresh=("d",), merged=("b",))
    plane.enter(AVERAGED, after, 0.5, receipt=receipt)
    now = plane.average.state_by_name()  # type: ignore[union-attr]
    assert torch.equal(now["a"], before["a"]) and torch.equal(now["c"], before["a"][[1, 0]])
    assert torch.equal(now["b"], parameters["b"]) and torch.equal(now["d"], after["d"])


def test_none_is_shown_where_none_is_kept() -> None:
    plane = OptimizerPlane(adam)
    plane.enter(state(), named("a"), 0.0)
    with pytest.raises(UserError, match=r"declare optimizer\.ema"), plane.evaluating("ema"):
        pass


def test_saved_averages_of_another_model_are_refused() -> None:
    plane = OptimizerPlane(adam)
    plane.enter(AVERAGED, named("a"), 0.0)
    assert plane.average is not None
    for saved in ({}, {"a": torch.ones(3)}, {"a": torch.ones(2), "b": torch.ones(2)}):
        with pytest.raises(UserError):
            plane.average.load_state_by_name(saved)


def test_statistics_of_norm_layers_are_averaged_with_the_weights_and_follow_their_layer() -> None:
    plane, parameters = OptimizerPlane(adam), named("one.weight")
    buffers = {"one.running_mean": torch.zeros(2), "one.table": torch.zeros(2)}
    plane.enter(AVERAGED, parameters, 0.0, buffers=buffers)
    for buffer in buffers.values():
        buffer.fill_(8.0)
    step(plane)
    with plane.evaluating("ema"):
        assert buffers["one.running_mean"].tolist() == [2.0, 2.0] and buffers["one.table"].tolist() == [8.0, 8.0]
    assert buffers["one.running_mean"].tolist() == [8.0, 8.0]
    after = {**parameters, **named("two.weight", "new.weight")}
    buffers |= {"two.running_mean": torch.ones(2), "new.running_mean": torch.ones(2), "bare.running_mean": torch.ones(2)}
    receipt = ModelReceipt(adopted={"one.weight": "one.weight"}, copied={"two.weight": CopyOf(source="one.weight")}, fresh=("new.weight",))
    plane.enter(AVERAGED, after, 0.5, receipt=receipt, buffers=buffers)
    now = plane.average.state_by_name()  # type: ignore[union-attr]
    assert {name: average.tolist() for name, average in now.items() if name.endswith("mean")} == {
        "one.running_mean": [2.0, 2.0],
        "two.running_mean": [2.0, 2.0],
        "new.running_mean": [1.0, 1.0],
        "bare.running_mean": [1.0, 1.0],
    }
