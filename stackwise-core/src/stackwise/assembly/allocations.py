"""What a computation would allocate: it runs on tensors that have shape, dtype and device but no numbers, and every storage is counted.

By torch's fake tensors, which `torch.compile` traces with. So kernels, autocast and autograd decide as they do in a run on that device.
Tensors that do have numbers, a batch of tokens or a mask, keep them, and what is made of them alone is computed: how many targets
there are is then known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from weakref import finalize

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_FEW = 2**20
"""Entries up to which a constant (a tensor that is made from no other one) has numbers."""


_INDEXING = frozenset(
    {
        torch.ops.aten.index.Tensor,
        torch.ops.aten.index_put.default,
        torch.ops.aten.index_put_.default,
        torch.ops.aten._index_put_impl_.default,
    }
)


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the bytes of all storages that live while it is active.

    Args:
        device: what tensors without numbers give as their device.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device, self._fake = device, FakeTensorMode(allow_non_fake_inputs=True)
        self._storages: dict[int, int] = {}
        self._placed: dict[int, torch.Tensor] = {}
        """id of a meta tensor that a module holds beside its parameters and buffers → its counted stand-in on the device."""
        self._answers: float | None = None
        self.live = 0
        """Bytes now."""
        self.peak = 0
        """The most bytes since `begin`."""

    def begin(self) -> int:
        """Forget the peak; returns the bytes now."""
        self.peak = self.live
        return self.live

    def count(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once, for as long as it lives."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._storages:
            return
        self._storages[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._storages.pop(key)

    def without_numbers(self, like: torch.Tensor) -> torch.Tensor:
        """A tensor of the same shape, dtype and strides on the device, counted."""
        with self._fake:
            made = torch.empty_like(like, device=self._device)
        self.count(made)
        return made

    def model(self, model: nn.Module) -> Any:
        """A copy of a model whose parameters and buffers have no numbers."""
        parameters: dict[int, Any] = {id(p): nn.Parameter(self.without_numbers(p.detach()), p.requires_grad) for p in model.parameters()}
        buffers = {id(buffer): self.without_numbers(buffer) for buffer in model.buffers()}
        return deepcopy(model, {**parameters, **buffers})

    @contextmanager
    def reading(self, answer: float) -> Iterator[None]:
        """While this is open, reading a number that is not there gives `answer`; else it is an error. For reads that decide nothing."""
        self._answers = answer
        try:
            yield
        finally:
            self._answers = None

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operator and count what it makes."""
        if function is torch.ops.prim.device.default:
            return function(*args)
        given = kwargs or {}
        tensors = [*_tensors(args), *_tensors(given.values())]
        if any(each.is_meta and not isinstance(each, FakeTensor) for each in tensors):
            args, given = tree_map(self._here, (args, given))
        if self._answers is not None and function is torch.ops.aten._local_scalar_dense.default and isinstance(tensors[0], FakeTensor):
            return self._answers
        if function in _INDEXING:
            args = (args[0], _places(args[1]), *args[2:])
        made = function(*args, **given) if tensors else self._from_nothing(function, args, given)
        for each in _tensors(made if isinstance(made, tuple | list) else (made,)):
            self.count(each)
        return made

    def _from_nothing(self, function: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
        """A constant has numbers, unless it is large or on another device."""
        with self._fake:
            made = function(*args, **given)
        if not isinstance(made, torch.Tensor) or (made.numel() <= _FEW and made.device.type == "cpu"):
            return function(*args, **given)
        return made

    def _here(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_meta or isinstance(value, FakeTensor):
            return value
        if id(value) not in self._placed:
            self._placed[id(value)] = self.without_numbers(value)
        return self._placed[id(value)]


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Those among the arguments or results of an operator, which nests them in lists at most."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _places(indices: Iterable[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """The indices, each mask that has numbers replaced by the positions that it selects."""
    places: list[torch.Tensor | None] = []
    for index in indices:
        is_mask = index is not None and index.dtype is torch.bool and not isinstance(index, FakeTensor)
        places += index.nonzero(as_tuple=True) if is_mask and index is not None else [index]
    return places
