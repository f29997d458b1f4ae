"""What the core asks of an optimizer, of each one that this distribution offers."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import attrs
import pytest
import torch
from small_parameters import CONTEXT, SHAPES, give_gradients, group_of, named, resolve
from torch import nn

from stackwise import ParameterGroup
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import GroupState, OptimizerState
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.timeline.schedules import Curve, Knot
from stackwise_providers_optim import provider

COMPONENTS = {component.name: component for component in provider.stackwise_optimizers()}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, dict(component.example)) for name, component in COMPONENTS.items()},
    "sgd coupled": ("sgd", {"coupled": True, "nesterov": True}),
    "muon of selectors": ("muon", {"matrices": ("head.weight", "*.square.weight"), "scale": "match-rms-adamw"}),
    "soap": ("pytorch-optimizer", {"name": "soap", "lr": 0.01}),
}
FOLLOWED = [
    (name, attribute.name)
    for name, component in COMPONENTS.items()
    for attribute in attrs.fields(resolve(component.options))
    if attribute.metadata.get("scheduled")
]


def options_of(variant: str, **changes: Any) -> Any:
    name, written = VARIANTS[variant]
    return resolve(COMPONENTS[name].options)(**{**written, **changes})


def build(variant: str, groups: Sequence[ParameterGroup], **changes: Any) -> torch.optim.Optimizer:
    name, _ = VARIANTS[variant]
    made: torch.optim.Optimizer = resolve(COMPONENTS[name].factory)(options_of(variant, **changes), CONTEXT, groups)
    return made


def entered(variant: str, parameters: dict[str, nn.Parameter], curves: dict[str, Curve] | None = None) -> OptimizerPlane:
    """A plane with two groups, of which `one` follows curves."""
    groups = (
        GroupState(name="one", select=("rack.stacks.base.0", "head"), curves=curves or {}),
        GroupState(name="default", select=(), curves={}),
    )
    plane = OptimizerPlane(lambda part, t, made: build(variant, made))
    plane.enter(OptimizerState(part=Part(kind="optimizer", id="o"), groups=groups), parameters, 0.0)
    return plane


def stepped(plane: OptimizerPlane, parameters: dict[str, nn.Parameter], step: int) -> None:
    give_gradients(parameters, step)
    plane.apply_values(step / 10)
    torch.manual_seed(step)
    plane.optimizer.step()


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_by_name_and_back_gives_the_same_next_steps(variant: str) -> None:
    mine, yours = named(), named()
    one, other = entered(variant, mine), entered(variant, yours)
    for step in range(3):
        stepped(one, mine, step)
    with torch.no_grad():
        for name, parameter in mine.items():
            yours[name].copy_(parameter)
    other.load_state_by_name(deepcopy(one.state_by_name()))
    for step in range(3, 6):
        stepped(one, mine, step)
        stepped(other, yours, step)
        assert all(torch.equal(mine[name], yours[name]) for name in mine)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if hasattr(options_of(name), "to_spec")])
def test_state_entries_are_those_declared_for_every_shape(variant: str) -> None:
    shapes = {**SHAPES, "rack.cube.weight": (2, 3, 4), "head.kernel.weight": (2, 3, 4, 5), "rack.one.weight": (1, 1)}
    parameters = named(shapes)
    optimizer = build(variant, [group_of(parameters)])
    for step in range(2):
        give_gradients(parameters, step)
        optimizer.step()
    spec = options_of(variant).to_spec()
    for name, parameter in parameters.items():
        kept = sum(torch.as_tensor(entry).numel() for entry in optimizer.state[parameter].values())
        assert spec.count(name, tuple(parameter.shape)) == kept, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_torch_groups_say_whose_they_are_and_what_they_keep(variant: str) -> None:
    parameters = named()
    optimizer = build(variant, [group_of({"head.weight": parameters.pop("head.weight")}, "own"), group_of(parameters)])
    give_gradients(parameters, 0)
    optimizer.step()
    assert {group["group"] for group in optimizer.param_groups} == {"own", "default"}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if group["moments"] and state:
                assert group["moments"].keys() <= state.keys()
                assert all(state[entry].shape == parameter.shape for entry, power in group["moments"].items() if power != 0)
                assert all(not state[entry].dim() for entry, power in group["moments"].items() if power == 0)


@pytest.mark.parametrize(("variant", "name"), FOLLOWED)
def test_a_value_that_follows_time_arrives_in_its_group_and_nowhere_else(variant: str, name: str) -> None:
    """The same run, but for one curve of one group: its parameters go elsewhere, the others do not move by a bit."""
    held, moving = Curve.constant(0.5), Curve((Knot(0.0, 0.5, "linear"), Knot(1.0, 0.9, "hold")))
    runs = []
    for curve in (held, moving):
        parameters = named()
        curves = {"lr": Curve.constant(0.01), "adamw_lr": Curve.constant(0.01), "weight_decay": Curve.constant(0.1), name: curve}
        known = {a.name for a in attrs.fields(type(options_of(variant)))}
        plane = entered(variant, parameters, {key: value for key, value in curves.items() if key in known})
        for step in range(6):
            stepped(plane, parameters, step)
        runs.append(parameters)
    moved = {key for key, parameter in runs[0].items() if not torch.equal(parameter, runs[1][key])}
    assert moved and all(key.startswith(("rack.stacks.base.0", "head")) for key in moved)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_builds_on_the_meta_device(variant: str) -> None:
    optimizer = build(variant, [group_of(named(device="meta"))])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(SHAPES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_parameter_without_a_gradient_stays(variant: str) -> None:
    parameters = named()
    optimizer = build(variant, [group_of(parameters)])
    give_gradients(parameters, 0)
    parameters["head.weight"].grad = None
    before = parameters["head.weight"].detach().clone()
    optimizer.step()
    assert torch.equal(parameters["head.weight"], before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_in_bfloat16_are_stepped(variant: str) -> None:
    parameters = named(dtype=torch.bfloat16)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = build(variant, [group_of(parameters)])
    for step in range(3):
        give_gradients(parameters, step)
        optimizer.step()
    assert all(p.dtype == torch.bfloat16 and bool(p.isfinite().all()) for p in parameters.values())
    assert any(not torch.equal(p, before[name]) for name, p in parameters.items())
