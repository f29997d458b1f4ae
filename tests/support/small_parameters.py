"""Named parameters of every kind, gradients for them, and optimizers over them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from stackwise import BuildContext, ParameterGroup

CONTEXT = BuildContext(seed=0)

SHAPES: dict[str, tuple[int, ...]] = {
    "embedding.table.weight": (10, 6),
    "rack.stacks.base.0.in.weight": (8, 6),
    "rack.stacks.base.0.in.bias": (8,),
    "rack.stacks.base.0.out.weight": (6, 8),
    "rack.stacks.base.1.in.weight": (8, 6),
    "rack.stacks.base.1.square.weight": (7, 7),
    "rack.stacks.base.1.gain": (),
    "head.weight": (10, 6),
    "head.norm.weight": (6,),
}


def named(
    shapes: Mapping[str, tuple[int, ...]] = SHAPES, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict[str, nn.Parameter]:
    """Equal parameters at every call."""
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: nn.Parameter(value.to(device, dtype)) for name, value in drawn.items()}


def give_gradients(parameters: Mapping[str, nn.Parameter], step: int) -> None:
    """Random gradients that depend on the step and the name alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    for name in sorted(parameters):
        drawn = torch.randn(parameters[name].shape, generator=generator, dtype=torch.float64)
        parameters[name].grad = drawn.to(parameters[name].dtype)


def group_of(parameters: dict[str, nn.Parameter], name: str = "default", **values: float) -> ParameterGroup:
    """A group with values of its own."""
    return ParameterGroup(name=name, parameters=parameters, values=values)


def assert_same_steps(
    ours: torch.optim.Optimizer,
    theirs: torch.optim.Optimizer,
    mine: Mapping[str, nn.Parameter],
    yours: Mapping[str, nn.Parameter],
    *,
    steps: int = 25,
    tolerance: float = 1e-6,
) -> None:
    """Both optimizers get the same gradients, and their parameters stay the same at every step."""
    for step in range(steps):
        give_gradients(mine, step)
        give_gradients(yours, step)
        ours.step()
        theirs.step()
        for name, parameter in mine.items():
            torch.testing.assert_close(
                parameter, yours[name], rtol=tolerance, atol=tolerance, msg=lambda text, n=name, k=step: f"{n}, step {k}: {text}"
            )


def resolve(reference: str) -> Any:
    """What a component names as `module:attribute`."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)
