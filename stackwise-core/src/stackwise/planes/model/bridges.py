"""Apply the lossless bridges that unification found: renamed and widened fields, permuted hidden states.

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
    """One tensor to take from a batch: its name, the batch's name for it, and the dtype to widen it to, if any."""

    name: str
    source: str
    dtype: torch.dtype | None = None


def fields_across(names: Iterable[str], bridges: Iterable[Bridge]) -> tuple[Field, ...]:
    """The fields to take across one junction, as its bridges rename and widen them."""
    every = tuple(bridges)
    sources = {bridge.field: bridge.before for bridge in every if bridge.kind == "rename"}
    dtypes = {bridge.field: torch_dtype(bridge.after) for bridge in every if bridge.kind == "cast"}
    return tuple(Field(name, sources.get(name, name), dtypes.get(name)) for name in names)


def take(fields: Sequence[Field], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fields under their new names; those missing from the batch are left out."""
    tensors = {}
    for name, source, dtype in fields:
        if source in batch:
            tensor = batch[source]
            tensors[name] = tensor if dtype is None else tensor.to(dtype)
    return tensors


def hidden_bridges(bridges: Iterable[Bridge]) -> nn.Sequential | None:
    """A module without parameters that converts the hidden state for a part; None where nothing differs."""
    modules: list[nn.Module] = []
    for bridge in bridges:
        if bridge.kind == "permute":
            modules.append(Permute(bridge.before, bridge.after))
        elif bridge.kind == "cast":
            modules.append(Precision(bridge.after))
    return nn.Sequential(*modules) if modules else None


class Permute(nn.Module):
    """Permute the dimensions of the hidden state.

    Args:
        before: the input's dimensions in order (`batch time width`).
        after: the output's (`time batch width`).

    Raises:
        ValueError: `before` and `after` are not permutations of the same distinct names.
    """

    def __init__(self, before: str, after: str) -> None:
        super().__init__()
        source, target = before.split(), after.split()
        if sorted(source) != sorted(target) or len(set(source)) != len(source):
            raise ValueError(f"'{before}' and '{after}' are no two orders of the same dimensions, each named once")
        self._spec = AdapterSpec(input=TensorSpec(before), output=TensorSpec(after))
        self.order = tuple(source.index(dim) for dim in target)

    def get_spec(self) -> AdapterSpec:
        """The two orders."""
        return self._spec

    def forward(self, hidden: Tensor) -> Tensor:
        """A view of the hidden state with its dimensions in the order `after`."""
        return hidden.permute(self.order)


class Precision(nn.Module):
    """Cast the hidden state to another floating dtype; the gradient flows back in the input's dtype."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = torch_dtype(dtype)

    def get_spec(self) -> AdapterSpec:
        """Any floating dtype in, this one out."""
        return AdapterSpec(
            input=TensorSpec("batch time width"), output=TensorSpec("batch time width", str(self.dtype).removeprefix("torch."))
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden state `[B, T, D]`, converted; numbers that are not floating, as the ids that a whole module takes, stay."""
        return hidden.to(self.dtype) if hidden.is_floating_point() else hidden


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name.

    Raises:
        ValueError: there is none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"'{name}' is not a dtype of torch")
    return dtype
