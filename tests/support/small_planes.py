"""Optimizer planes over a few vectors, declared without a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from stackwise.contracts.protocols import ParameterGroup
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import GroupState, OptimizerState
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.timeline.schedules import Curve, Knot

FALLING = Curve((Knot(0.0, 1.0, "linear"), Knot(1.0, 0.0, "hold")))


def named(*names: str, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    """Vectors of two ones."""
    return {name: nn.Parameter(torch.ones(2, dtype=dtype)) for name in names}


def state(*groups: tuple[str, tuple[str, ...], Curve], lr: Curve = FALLING, **changes: Any) -> OptimizerState:
    """A declared state; groups are (name, selectors, learning rate)."""
    declared = [GroupState(name=name, select=select, curves={"lr": curve}) for name, select, curve in groups]
    rest = GroupState(name="default", select=(), curves={"lr": lr})
    return OptimizerState(**{"part": Part(kind="optimizer", id="o"), "groups": (*declared, rest), **changes})


def adam(part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    """One torch group for each declared one."""
    return torch.optim.Adam([{"params": list(g.parameters.items()), "group": g.name, **g.values} for g in groups])


def step(plane: OptimizerPlane, gradients: Mapping[str, float] | float = 1.0, t: float = 0.0) -> None:
    """One update with constant gradients, by name or the same for all."""
    for name, parameter in plane._model.items():
        if parameter.requires_grad:
            value = gradients if isinstance(gradients, float) else gradients[name]
            parameter.grad = torch.full_like(parameter, value, dtype=parameter.grad_dtype)
    plane.step(t)
    for parameter in plane.parameters:
        parameter.grad = None


def copies(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
    """Optimizer state as it is now."""
    return {name: {key: torch.as_tensor(v).clone() for key, v in kept.items()} for name, kept in entries.items()}
