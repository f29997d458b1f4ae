"""Plain attributes of objects given in code, which no checkpoint holds: whether a step changes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

_MOST = 4096
"""Entries of a tensor, and of a list or map, that are looked at; of a larger tensor only its version."""

_OF_TORCH = {*vars(nn.Module()), "state", "param_groups", "defaults"}
"""What torch itself keeps in modules and optimizers."""


def plain_attributes(name: str, given: object) -> dict[str, str]:
    """What an object keeps in numbers, texts, tensors and lists of them: path → its value, told by a text.

    Left out are parameters and buffers, which are saved; results of the step itself, through which gradients flow; objects that say their
    own state (`state_dict`), and modules that do (`get_extra_state`).

    Args:
        name: what its paths begin with.
        given: a module, a loss or an optimizer; a function keeps nothing that can be seen.
    """
    return dict(_attributes(name, getattr(given, "__self__", given)))


def _attributes(name: str, given: object) -> Iterator[tuple[str, str]]:
    if isinstance(given, nn.Module):
        own = [(path, module) for path, module in given.named_modules() if type(module).get_extra_state is nn.Module.get_extra_state]
        holders: list[tuple[str, object]] = [(f"{name}.{path}".rstrip("."), module) for path, module in own]
    elif isinstance(given, type) or not hasattr(given, "__dict__") or (_says_state(given) and not isinstance(given, torch.optim.Optimizer)):
        return
    else:
        holders = [(name, given)]
    for path, holder in holders:
        for key, value in vars(holder).items():
            if key not in _OF_TORCH and (told := _told(value)) is not None:
                yield f"{path}.{key}", told


def _says_state(given: object) -> bool:
    return callable(getattr(given, "state_dict", None))


def _told(value: object, depth: int = 0) -> str | None:
    """A text that tells a value from another one; None for what is not looked at."""
    if isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        return repr(value)
    if isinstance(value, torch.Tensor):
        if isinstance(value, nn.Parameter) or value.grad_fn is not None or value.is_meta or value.is_inference():
            return None
        held = value.tolist() if value.numel() <= _MOST and value.layout is torch.strided else value._version
        return f"{list(value.shape)} {held}"
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.tolist() if value.size <= _MOST else ''}"
    if isinstance(value, Mapping):
        value = [each for pair in value.items() for each in pair]
    if isinstance(value, Sequence | deque | set | frozenset):
        parts = [told for each in list(value)[:_MOST] if depth < 2 and (told := _told(each, depth + 1)) is not None]
        return f"{len(value)} {parts}"
    return None
