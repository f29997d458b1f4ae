"""Deferred initialisation: a module is built without drawing its parameters, so that only those that stay fresh cost anything.

A constructor draws every weight, also those that a transition throws away at once because an old parameter is adopted in their
place. Here the draws are noted instead (`normal_`, `uniform_`, `zeros_`, … and what is done to a whole tensor after them) and
made for the parameters that need them, each from a stream of its own name. Memory that is never written is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten

_DRAWS = {
    _aten.normal_.default,
    _aten.uniform_.default,
    _aten.random_.default,
    _aten.random_.to,
    getattr(_aten.random_, "from"),
    _aten.exponential_.default,
    _aten.bernoulli_.float,
    _aten.log_normal_.default,
    _aten.cauchy_.default,
    _aten.geometric_.default,
}
"""What overwrites a whole tensor from a generator."""

_OVERWRITES = _DRAWS | {_aten.zero_.default, _aten.fill_.Scalar}


@define
class _Recipe:
    """A tensor that holds nothing yet, and what makes its values."""

    tensor: torch.Tensor
    calls: list[tuple[Any, Sequence[Any], Mapping[str, Any]]] = field(factory=list)

    def carry_out(self, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            for function, arguments, options in self.calls:
                given = {"generator": generator} if generator is not None and function in _DRAWS else {}
                function(self.tensor, *arguments, **options, **given)
        self.calls.clear()


class DeferredInitialisation(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type its modes
    """A context in which whole-tensor initialisation is noted, not made.

    A tensor whose values are asked for inside the context (orthogonal draws, one weight computed from another) is made at once
    from the generator in force there. After the context, `make` makes what a model needs; nothing may read the others.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._recipes: dict[int, _Recipe] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        tensors = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, torch.Tensor)]
        target = tensors[0] if len(tensors) == 1 and args and tensors[0] is args[0] else None
        if target is not None and _is_whole(target) and kwargs.get("generator") is None:
            recipe = self._recipes.get(_key(target))
            if func in _OVERWRITES:
                self._recipes[_key(target)] = _Recipe(target, [(func, args[1:], dict(kwargs))])
                return target
            if recipe is not None and recipe.calls and _changes_in_place(func):
                recipe.calls.append((func, args[1:], dict(kwargs)))
                return target
        for tensor in tensors:
            recipe = self._recipes.pop(_key(tensor), None)
            if recipe is not None:
                recipe.carry_out()
        return func(*args, **kwargs)

    def make(self, tensor: torch.Tensor, seed: int) -> None:
        """Make the values of a tensor from a stream of its own; one that holds values is left as it is.

        Draws are made on the CPU, whatever device the tensor moves to later.
        """
        recipe = self._recipes.pop(_key(tensor), None)
        if recipe is not None and not tensor.is_meta:
            recipe.carry_out(torch.Generator(tensor.device).manual_seed(seed))


def _key(tensor: torch.Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def _is_whole(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _changes_in_place(function: Any) -> bool:
    """Whether an operation writes the tensor it is called on, and only that."""
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in function._schema.arguments]
    return bool(written) and written[0] and not any(written[1:])


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
