"""Lossless bridges at work: renamed and widened fields, permuted hidden states. Which ones is unification's finding.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stackwise.contracts.specs import AdapterSpec, TensorSpec
from stackwise.curriculum.bridges import Bridge


class Field(NamedTuple):
    """One named tensor to take: where it lies and the dtype it is widened to, if any."""

    name: str
    source: str
    dtype: torch.dtype | None = None


def fields_across(names: Iterable[str], bridges: Iterable[Bridge]) -> tuple[Field, ...]:
    """How to take the named tensors across one junction."""
    own = tuple(bridges)
    sources = {bridge.field: bridge.before for bridge in own if bridge.kind == "rename"}
    dtypes = {bridge.field: torch_dtype(bridge.after) for bridge in own if bridge.kind == "cast"}
    return tuple(Field(name, sources.get(name, name), dtypes.get(name)) for name in names)


def take(fields: Sequence[Field], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fields by their needed names; those the batch does not have are left out."""
    taken = {}
    for name, source, dtype in fields:
        if source in batch:
            tensor = batch[source]
            taken[name] = tensor if dtype is None else tensor.to(dtype)
    return taken


def hidden_bridges(bridges: Iterable[Bridge]) -> nn.Sequential | None:
    """One module that brings the hidden state into a part; None where nothing differs. It holds no parameter."""
    modules: list[nn.Module] = []
    for bridge in bridges:
        if bridge.kind == "permute":
            modules.append(Permute(bridge.before, bridge.after))
        elif bridge.kind == "cast":
            modules.append(Precision(bridge.after))
    return nn.Sequential(*modules) if modules else None


class Permute(nn.Module):
    """The same dimensions in another order.

    Args:
        before: names of the dimensions as they come (`batch time width`).
        after: the same names as they go (`time batch width`).

    Raises:
        ValueError: the two do not name the same dimensions, each once.
    """

    def __init__(self, before: str, after: str) -> None:
        super().__init__()
        given, taken = before.split(), after.split()
        if sorted(given) != sorted(taken) or len(set(given)) != len(given):
            raise ValueError(f"'{before}' and '{after}' are no two orders of the same dimensions, each named once")
        self._spec = AdapterSpec(input=TensorSpec(before), output=TensorSpec(after))
        self.order = tuple(given.index(dim) for dim in taken)

    def get_spec(self) -> AdapterSpec:
        """The two orders."""
        return self._spec

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden state with its dimensions in the order `after`; a view."""
        return hidden.permute(self.order)


class Precision(nn.Module):
    """The hidden state in another floating dtype; the gradient flows back in the dtype it came in."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = torch_dtype(dtype)

    def get_spec(self) -> AdapterSpec:
        """Any floating dtype in, this one out."""
        return AdapterSpec(
            input=TensorSpec("batch time width"), output=TensorSpec("batch time width", str(self.dtype).removeprefix("torch."))
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden state `[B, T, D]`, converted."""
        return hidden.to(self.dtype)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of that name.

    Raises:
        ValueError: torch has none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"'{name}' is no dtype of torch")
    return dtype
