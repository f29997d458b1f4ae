"""Checks that what was built or given for a part is of its kind, whether a provider or the user made it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stackwise.config.hints import SCHEDULED_RATE
from stackwise.curriculum.parts import Part
from stackwise.errors import ProviderError, UserError

_SHAPES = {
    "task": (("get_spec", "prepare", "loss"), "a loss function becomes a task by Loss(function, '<target field>')"),
    "optimizer": (("step", "param_groups"), "a function that makes one is written Built(function, <option>=…)"),
}
"""Kind → the methods that every component of it has, and a hint about what to write where they are missing."""


def checked(part: Part, made: Any) -> Any:
    """Check that a task or an optimizer has the methods of its kind; components of providers are checked elsewhere.

    Raises:
        UserError: what was given in code lacks one.
    """
    names, form = _SHAPES[part.kind]
    if hasattr(made, "get_last_lr"):
        raise UserError(f"{part.kind}: a {type(made).__name__} is no {part.kind}: {SCHEDULED_RATE['scheduler']}")
    if part.given is not None and (missing := [name for name in names if not hasattr(made, name)]):
        raise UserError(f"{part.kind}: {part.id} cannot be used as {part.kind}, because it has no {', '.join(missing)}: {form}")
    return made


def without_scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimizer that was given in code, or made by what was, as it is.

    Raises:
        UserError: a scheduler of torch stands around it.
    """
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        name, rate = type(optimizer).__name__, float(optimizer.param_groups[0]["lr"])
        raise UserError(
            f"a scheduler of torch stands around this {name}, and nothing steps it here, so that the rate would stay at {rate:g}: give "
            f"Built(torch.optim.{name}, lr={{'cosine': {{'from': {rate:g}, 'warmup': '5%'}}}}), or another schedule of the config"
        )
    return optimizer


def checked_module(part: Part, made: Any) -> nn.Module:
    """Check that a part is a module.

    Raises:
        ProviderError: it is not; UserError where it was given in code.
    """
    if isinstance(made, nn.Module):
        return made
    fault, form = (ProviderError, "") if part.given is None else (UserError, "; a function that makes one is written Built(function, …)")
    raise fault(f"{part.kind} {part.id} was built as a {type(made).__name__}: it must be an nn.Module{form}")
