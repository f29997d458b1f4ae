"""Deferred initialisation: a module is built without drawing its parameters, so that only those that stay fresh cost anything.

A constructor draws every weight, also those that a transition throws away at once because an old parameter is adopted in their
place. Here the draws are noted instead (`normal_`, `uniform_`, `zeros_`, … and what is done to a whole tensor after them) and
made for the parameters that need them, each from a stream of its own name. Memory that is never written is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from attrs import define, field
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

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

_DRAWN_FACTORIES = {_aten.randn.default: _aten.normal_.default, _aten.rand.default: _aten.uniform_.default}
"""What makes a tensor and draws all of it, and the draw alone."""

_SHAPE_ONLY = {
    _aten.empty_like.default,
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.full_like.default,
    _aten.rand_like.default,
    _aten.randn_like.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
}
"""What asks a tensor for its shape and type, not for its values."""

_OUTSIDE = {torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.data_ptr, torch.Tensor.__dlpack__}
"""What hands out memory past every operation."""


@define
class _Recipe:
    """A storage that holds nothing yet, and what makes its values: calls on it or on views of all of it."""

    calls: list[tuple[Any, torch.Tensor, Sequence[Any], Mapping[str, Any]]] = field(factory=list)

    def carry_out(self, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            for function, tensor, arguments, options in self.calls:
                given = {"generator": generator} if generator is not None and function in _DRAWS else {}
                function(tensor, *arguments, **options, **given)


class DeferredInitialisation:
    """A context in which whole-tensor initialisation is noted, not made.

    A tensor whose values are asked for inside the context (orthogonal draws, one weight computed from another) is made at once
    from the generator in force there, in the order of asking. After the context, `make` makes what a model needs, each tensor from
    a stream of its own, and `make_others` what its modules hold beside parameters and buffers; nothing may read the rest.
    """

    def __init__(self) -> None:
        self._recipes: dict[int, _Recipe] = {}
        self._modes = ExitStack()

    def __enter__(self) -> DeferredInitialisation:
        self._modes.enter_context(_Operations(self._recipes))
        self._modes.enter_context(_Readers(self._recipes))
        return self

    def __exit__(self, *fault: Any) -> None:
        self._modes.close()

    def make(self, tensor: torch.Tensor, seed: int) -> None:
        """Make the values of a tensor from a stream of its own; one that holds values is left as it is.

        Draws are made on the CPU, whatever device the tensor moves to later.
        """
        recipe = self._recipes.pop(_key(tensor), None)
        if recipe is not None and not tensor.is_meta:
            recipe.carry_out(torch.Generator(tensor.device).manual_seed(seed))

    def make_others(self, model: Iterable[torch.Tensor], seed_of: Callable[[int], int]) -> None:
        """Make what is no parameter or buffer of the model, such as a table that a module keeps as a plain attribute.

        Args:
            model: the parameters and buffers, which `make` makes.
            seed_of: number of the tensor in the order of their draws → seed.
        """
        named = {_key(tensor) for tensor in model}
        for number, key in enumerate([key for key in self._recipes if key not in named]):
            tensor = self._recipes[key].calls[0][1]
            self.make(tensor, seed_of(number))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type its modes
    """Notes draws, and makes what other operations read."""

    def __init__(self, recipes: dict[int, _Recipe]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._recipes = recipes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view or func in _SHAPE_ONLY:
            return func(*args, **kwargs)
        if func in _DRAWN_FACTORIES:
            made = torch.empty(*args, **kwargs)
            self._recipes[_key(made)] = _Recipe([(_DRAWN_FACTORIES[func], made, (), {})])
            return made
        tensors = _tensors((*args, *kwargs.values()))
        target = tensors[0] if len(tensors) == 1 and args and tensors[0] is args[0] else None
        if target is not None and _is_whole(target) and kwargs.get("generator") is None:
            call = (func, target, args[1:], dict(kwargs))
            recipe = self._recipes.get(_key(target))
            if func in _OVERWRITES:
                self._recipes[_key(target)] = _Recipe([call])
                return target
            if recipe is not None and _changes_values_in_place(func):
                recipe.calls.append(call)
                return target
        _make_at_once(self._recipes, tensors)
        return func(*args, **kwargs)


class _Readers(TorchFunctionMode):
    """Makes what is read without an operation."""

    def __init__(self, recipes: dict[int, _Recipe]) -> None:
        super().__init__()
        self._recipes = recipes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _OUTSIDE:
            with _disable_current_modes():  # else the draws would only be noted again
                _make_at_once(self._recipes, _tensors(args))
        return func(*args, **(kwargs or {}))


def _make_at_once(recipes: dict[int, _Recipe], tensors: Iterable[torch.Tensor]) -> None:
    for tensor in tensors:
        recipe = recipes.pop(_key(tensor), None)
        if recipe is not None:
            recipe.carry_out()


def _key(tensor: torch.Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def _is_whole(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _changes_values_in_place(function: Any) -> bool:
    """Whether an operation writes the tensor it is called on, and only that, and leaves its shape."""
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in function._schema.arguments]
    return bool(written) and written[0] and not any(written[1:]) and torch.Tag.inplace_view not in function.tags


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    """Those among the arguments of an operation, in lists too."""
    found = []
    for value in values:
        if isinstance(value, list | tuple):
            found += _tensors(value)
        elif isinstance(value, torch.Tensor):
            found.append(value)
    return found
