"""Hooks of modules, parameters and optimizers, and functions, that keep what no checkpoint holds: they are named, not refused.

A hook that only writes down what it sees is common, and cannot be told from one whose notes decide what comes next.
"""

from __future__ import annotations

import dis
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

_OF_MODULES = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OF_PARAMETERS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_OF_OPTIMIZERS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
"""Where torch keeps hooks; it lists them nowhere else, and a place that is gone is passed over."""

_OURS = ("torch.", "stackwise.")
"""Packages whose hooks keep what they need where it is saved."""

_CONTAINERS = (list, dict, set, bytearray, deque)
_WITHOUT_STATE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, type)


def keeping_hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, str]]:
    """Hooks that keep something: what it is registered on and its name, and what it keeps.

    Args:
        model: with all hooks on it; what it holds itself is saved with it.
        optimizer: likewise.
    """
    held = {id(each) for each in (*model.modules(), *model.parameters(), *model.buffers(), optimizer)}
    for where, hook in _hooks(model, optimizer):
        function = _innermost(hook)
        if f"{getattr(function, '__module__', '') or type(function).__module__}.".startswith(_OURS):
            continue
        if kept := sorted({name for name, value in _kept(function) if id(value) not in held}):
            called = getattr(function, "__qualname__", type(function).__qualname__)
            yield f"{where}: the hook {called}", ", ".join(kept)


def keeping_functions(functions: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Functions that a step calls, such as a loss or a collate, that change something around them: name, and what they keep.

    What they merely read, such as a tokenizer or the weights of classes, is not named: most functions close over something.

    Args:
        functions: what messages call each → the function; objects that can be called are looked at elsewhere.
    """
    for where, function in functions.items():
        function = _innermost(function)
        if isinstance(function, FunctionType) and not f"{function.__module__}.".startswith(_OURS):
            written, read = _written(function), set(function.__code__.co_names)
            kept = {
                name for name, value in _of_function(function) if name in written or (isinstance(value, _CONTAINERS) and name not in read)
            }
            if kept:
                yield f"{where} {function.__qualname__}", ", ".join(sorted(kept))


def _hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What every hook is registered on, and the hook."""
    for name, module in model.named_modules():
        yield from ((name, hook) for place in _OF_MODULES for hook in _in(module, place))
    for name, parameter in model.named_parameters():
        yield from ((name, hook) for place in _OF_PARAMETERS for hook in _in(parameter, place))
    yield from ((f"the optimizer {type(optimizer).__name__}", hook) for place in _OF_OPTIMIZERS for hook in _in(optimizer, place))


def _in(holder: Any, place: str) -> list[Callable[..., Any]]:
    return list((getattr(holder, place, None) or {}).values())


def _innermost(hook: Any) -> Any:
    """The function behind partials, and behind torch's own wrappers, such as that of `register_forward_hook(with_kwargs=True)`."""
    while isinstance(hook, partial):
        hook = hook.func
    return hook


def _kept(function: Any) -> Iterator[tuple[str, object]]:
    """Name and value of what a hook can change and that outlives its call."""
    if isinstance(function, MethodType):
        yield f"{type(function.__self__).__name__} (its object)", function.__self__
    elif isinstance(function, FunctionType):
        yield from _of_function(function)
    elif not isinstance(function, _WITHOUT_STATE):
        yield f"{type(function).__name__} (its object)", function


def _of_function(function: FunctionType) -> Iterator[tuple[str, object]]:
    code, cells, written = function.__code__, function.__closure__ or (), _written(function)
    for name, cell in zip(code.co_freevars, cells, strict=True):
        if name in written or _can_change(cell):
            yield name, _content(cell)
    for name in code.co_names:
        value = function.__globals__.get(name)
        if name in written or isinstance(value, _CONTAINERS):
            yield name, value
    for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        if isinstance(value, _CONTAINERS):
            yield "a default of its arguments", value


def _written(function: FunctionType) -> set[str]:
    """Names around a function that it assigns to."""
    return {each.argval for each in dis.get_instructions(function.__code__) if each.opname in ("STORE_DEREF", "STORE_GLOBAL")}


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is assigned yet
        return None


def _can_change(cell: Any) -> bool:
    value = _content(cell)
    if isinstance(value, (*_CONTAINERS, torch.Tensor, np.ndarray, np.random.Generator)):
        return True
    return hasattr(value, "__dict__") and not isinstance(value, _WITHOUT_STATE)
