"""Optimizers of a library by name: arguments checked against the class before it is made."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import torch

from stackwise import ParameterGroup, UserError
from stackwise_providers_optim.grouping import TorchGroup, torch_groups
from stackwise_providers_optim.options import NamedOptions

_OWNED = ("params", "lr", "weight_decay")
"""Arguments that are options of the component, or none at all."""


def check_name(name: str, known: Iterable[str], library: str) -> None:
    """Refuse a name that the library's list does not have.

    Raises:
        UserError: with near names.
    """
    known = sorted(known)
    if name not in known:
        raise UserError(f"optimizer.name: {library} has no optimizer '{name}'{_near(name, known)}")


def make(made: type[torch.optim.Optimizer], options: NamedOptions, groups: Sequence[TorchGroup]) -> torch.optim.Optimizer:
    """Call the class of an optimizer with groups and the further arguments.

    Raises:
        UserError: an argument that the class does not have or does not take.
    """
    known = arguments_of(made)
    further = {key: _immutable(value) for key, value in options.options.items()}
    for key in further:
        if key in _OWNED[1:]:
            raise UserError(f"optimizer.options.{key}: write it beside `use`, as optimizer.{key}, where it may follow time")
        if key not in known or key == "params":
            raise UserError(f"optimizer.options.{key}: {options.name} has no argument '{key}'{_near(key, known)}")
    for key in _OWNED[1:]:
        if getattr(options, key) is not None and key not in known:
            raise UserError(f"optimizer.{key}: {options.name} has no argument '{key}': leave it out")
    try:
        return made(list(groups), **further)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"optimizer: {options.name} does not take these options: {error}") from error


def groups_of(made: type[torch.optim.Optimizer], options: NamedOptions, groups: Sequence[ParameterGroup]) -> list[TorchGroup]:
    """Torch groups for a class, without a weight decay where it has none."""
    entries = torch_groups(options, groups, moments={})
    argument = arguments_of(made).get("weight_decay")
    for group in entries:
        if group["fixed"] and argument is not None:
            group["weight_decay"] = type(argument.default)(0) if isinstance(argument.default, int | float) else 0.0
    return entries


def arguments_of(made: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    """The arguments that a class has by name, `params` included."""
    signature = inspect.signature(made.__init__)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in signature.parameters.items() if name != "self" and p.kind in named}


def _immutable(value: Any) -> Any:
    """Lists of a config as the tuples that optimizers are written for (betas)."""
    return tuple(map(_immutable, value)) if isinstance(value, list | tuple) else value


def _near(name: str, known: Iterable[str]) -> str:
    known = [each for each in known if each not in _OWNED]
    near = get_close_matches(name, known, n=3)
    return f": did you mean {', '.join(near)}?" if near else f"; there is {', '.join(known)}"
