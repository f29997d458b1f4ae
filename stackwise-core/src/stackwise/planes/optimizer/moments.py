"""Optimizer state across a boundary: what every parameter keeps, copies through its map, or starts without; keyed by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from attrs import Factory, frozen
from torch import nn

from stackwise.contracts.growth import CopyOf
from stackwise.planes.model.parameter_map import fill, fill_moment
from stackwise.planes.model.transfer import ModelReceipt

Entries = Mapping[str, Any]
"""State of one parameter: entry → tensor or number."""

Powers = Mapping[str, int | str]
"""Entry → power of the gradient it is made of, 0 for a counter; `weight` for one that is itself a weight."""

TORCH_POWERS: Powers = {
    "step": 0,
    "exp_avg": 1,
    "momentum_buffer": 1,
    "exp_inf": 1,
    "mu_product": 0,
    "eta": 0,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "square_avg": 2,
    "sum": 2,
    "grad_avg": 1,
    "acc_delta": "weight",
    "ax": "weight",
}
"""What torch's own optimizers keep."""


@frozen(kw_only=True)
class MomentsReceipt:
    """What crossing into a state did to optimizer state, in parameters, frozen ones included."""

    kept: int = 0
    copied: int = 0
    dropped: int = 0


@frozen(kw_only=True)
class Crossing:
    """How the state of an optimizer crosses a boundary.

    Args:
        same: whether the optimizer goes on as the component that it was; another one takes over only what it declares to keep.
        moments: whether copied parameters, and all parameters of another optimizer, take state over.
        ended: adopted parameters whose state does not go on, though a copy of them may take it over.
        was: name before → what the optimizer kept for it, where it said so.
    """

    receipt: ModelReceipt
    same: bool = True
    moments: Literal["copy", "reset"] = "copy"
    ended: Collection[str] = ()
    was: Mapping[str, Powers] = Factory(dict)
    kept: dict[str, dict[str, Any]] = Factory(dict)
    copied: dict[str, dict[str, Any]] = Factory(dict)

    def carry(self, old: Mapping[str, Entries], parameters: Mapping[str, nn.Parameter], declared: Mapping[str, Powers]) -> MomentsReceipt:
        """Find the state of every parameter of the new model.

        Args:
            old: state by name before the boundary, that of frozen parameters included.
            parameters: every parameter of the new model by name.
            declared: name → what its optimizer keeps for it, where it says so.
        """
        for name, before in self.receipt.adopted.items():
            entries = self._taken(old.get(before), before, declared.get(name))
            if entries is not None and name not in self.ended and not self._is_stale(name, entries, declared.get(name)):
                self.kept[name] = dict(entries)
        if self.moments == "copy":
            for name, origin in self.receipt.copied.items():
                entries = self._taken(old.get(origin.source), origin.source, declared.get(name))
                parameter, was = parameters[name], self.receipt.recast.get(name)
                mapped = None if entries is None else map_entries(entries, parameter, origin, declared.get(name), was)
                if mapped is not None:
                    self.copied[name] = mapped
        used = {self.receipt.adopted[name] for name in self.kept} | {self.receipt.copied[name].source for name in self.copied}
        return MomentsReceipt(kept=len(self.kept), copied=len(self.copied), dropped=len(old.keys() - used))

    @property
    def sources(self) -> dict[str, str]:
        """Name → the one before whose state it goes on with, where there is any."""
        copied = {name: origin.source for name, origin in self.receipt.copied.items()} if self.moments == "copy" else {}
        return {**self.receipt.adopted, **copied}

    def _taken(self, entries: Entries | None, source: str, declared: Powers | None) -> Entries | None:
        """The entries that the new optimizer goes on with; None: it starts anew."""
        if not entries or (not self.same and (declared is None or self.moments == "reset")):
            return None
        if declared is None:
            return entries
        if any(entry not in entries for entry in declared):
            return None
        if self.same:
            gone = self.was.get(source, declared).keys() - declared.keys()  # by another rule of the same optimizer
            return {entry: value for entry, value in entries.items() if entry not in gone}
        return {entry: entries[entry] for entry in declared}

    def _is_stale(self, name: str, entries: Entries, declared: Powers | None) -> bool:
        """Whether the parameter took in an adapter that its state, being a weight itself, knows nothing of."""
        return self.receipt.adopted[name] in self.receipt.merged and any(power_of(entry, declared) == "weight" for entry in entries)


def power_of(entry: str, declared: Powers | None) -> int | str | None:
    """What an entry is made of; None where nobody says."""
    known = declared or {}
    return known[entry] if entry in known else TORCH_POWERS.get(entry)


def map_entries(
    entries: Entries, parameter: nn.Parameter, origin: CopyOf, declared: Powers | None, was: torch.dtype | None = None
) -> dict[str, Any] | None:
    """State of a copied parameter; None where an entry cannot follow the map, so that the parameter starts anew.

    Args:
        entries: state of its source.
        parameter: the copy.
        origin: the map.
        declared: what its optimizer keeps, where it says so.
        was: dtype of its source, where it has another one: entries held in the one are held in the other.
    """
    mapped: dict[str, Any] = {}
    for entry, value in entries.items():
        power = power_of(entry, declared)
        if not isinstance(value, torch.Tensor) or value.dim() == 0 or power == 0:
            mapped[entry] = value.clone() if isinstance(value, torch.Tensor) else deepcopy(value)
        elif origin.whole:
            mapped[entry] = value.clone()
        elif power is None:
            return None
        else:
            new = mapped[entry] = torch.empty_like(parameter.detach(), dtype=value.dtype)
            if isinstance(power, int):
                fill_moment(new, value, origin, power)
            else:
                new.copy_(parameter.detach())
                fill(new, value, origin)
        if was is not None and isinstance(value, torch.Tensor) and value.dim() and value.dtype == was:
            mapped[entry] = mapped[entry].to(parameter.dtype)
    return mapped
