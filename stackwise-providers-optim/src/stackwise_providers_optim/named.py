"""Optimizers of a library by name: arguments are checked against the class before the call."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import torch

from stackwise import ParameterGroup, UserError
from stackwise_providers_optim.grouping import TorchGroup, torch_groups
from stackwise_providers_optim.options import NamedOptions

_OPTIONS = ("lr", "weight_decay")
"""Arguments that are options of the component."""


def check_name(name: str, known: Iterable[str], library: str) -> None:
    """Refuse a name that the library's list does not have.

    Raises:
        UserError: with near names.
    """
    known = sorted(known)
    if name not in known:
        raise UserError(f"optimizer.name: {library} has no optimizer '{name}'{_near(name, known)}")


def make(
    cls: type[torch.optim.Optimizer], options: NamedOptions, groups: Sequence[ParameterGroup], *, alone: bool = False
) -> torch.optim.Optimizer:
    """Call the class of an optimizer with groups and the further arguments.

    Args:
        cls: the class.
        options: its name, values and further arguments.
        groups: canonical name → parameter, and the values in force.
        alone: whether every parameter gets a torch group of its own.

    Raises:
        UserError: an argument that the class does not have or does not take.
    """
    arguments = arguments_of(cls)
    entries = torch_groups(options, groups, moments={})
    further = {key: _immutable(value) for key, value in options.options.items()}
    for key in further:
        if key in _OPTIONS:
            raise UserError(f"optimizer.options.{key}: write it beside `use`, as optimizer.{key}, where it may follow time")
        if key not in arguments:
            raise UserError(f"optimizer.options.{key}: {options.name} has no argument '{key}'{_near(key, arguments)}")
    if "weight_decay" not in arguments:
        _forgo_decay(options.name, entries)
    if alone:
        entries = [{**entry, "params": [pair]} for entry in entries for pair in entry["params"]]
    try:
        return cls(entries, **further)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"optimizer: {options.name} does not take these options: {error}") from error


def _forgo_decay(name: str, entries: Sequence[TorchGroup]) -> None:
    for entry in entries:
        if entry.pop("weight_decay"):
            raise UserError(f"optimizer.weight_decay: {name} has none: leave it out")


def arguments_of(cls: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    """The arguments of a class by name, but for `params`."""
    signature = inspect.signature(cls.__init__)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in signature.parameters.items() if name not in ("self", "params") and p.kind in kinds}


def _immutable(value: Any) -> Any:
    """Lists of a config as tuples, which optimizers expect (betas)."""
    return tuple(map(_immutable, value)) if isinstance(value, list | tuple) else value


def _near(name: str, known: Iterable[str]) -> str:
    known = [each for each in known if each not in _OPTIONS]
    near = get_close_matches(name, known, n=3)
    return f": did you mean {', '.join(near)}?" if near else f"; there is {', '.join(known)}"
