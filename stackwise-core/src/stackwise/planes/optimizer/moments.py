"""Optimizer state across a boundary: what every parameter keeps, copies through its map, or starts without; keyed by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from attrs import Factory, evolve, frozen

from stackwise.contracts.growth import Combine, Mapped
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


MAGNITUDES = frozenset({"exp_inf"})
"""Entries of odd power that are never negative."""


@frozen(kw_only=True)
class MomentsReceipt:
    """What crossing into a state did to optimizer state, in parameters, frozen ones included."""

    kept: int = 0
    copied: int = 0
    dropped: int = 0


@frozen(kw_only=True)
class Kept:
    """What an optimizer keeps of one parameter."""

    entries: dict[str, Any] = Factory(dict)
    """Its state; empty before the first step."""
    powers: Powers | None = None
    """What the optimizer said that it keeps, where it said so."""
    counts: Mapping[str, Any] = Factory(dict)
    """What the optimizer itself changed in the torch group of the parameter."""


@frozen(kw_only=True)
class Carried:
    """What goes on after a boundary, by the new names."""

    entries: Mapping[str, dict[str, Any]]
    """The state of every parameter that does not start anew."""
    counted: Mapping[str, Kept]
    """What was kept of the parameter that each goes on from, where its counts go on."""
    receipt: MomentsReceipt


@frozen(kw_only=True)
class Crossing:
    """How the state of an optimizer crosses a boundary.

    Args:
        receipt: what the boundary did to the parameters.
        same: whether the optimizer goes on as the component that it was; another one takes over only what it declares to keep.
        moments: whether copied parameters, and all parameters of another optimizer, take state over.
        ended: parameters whose state does not go on, though a copy of an adopted one may take it over.
    """

    receipt: ModelReceipt
    same: bool = True
    moments: Literal["copy", "reset"] = "copy"
    ended: Collection[str] = ()

    def carry(self, old: Mapping[str, Kept], weights: Mapping[str, torch.Tensor], declared: Mapping[str, Powers]) -> Carried:
        """Find the state of every parameter of the new model.

        Args:
            old: name before → what was kept of it, frozen parameters included.
            weights: every name of the new model → what learns.
            declared: name → what its optimizer keeps for it, where it says so.
        """
        adopted, copied = self._adopted(old, declared), self._copied(old, weights, declared)
        entries = {**adopted, **copied}
        sources = {**self.receipt.adopted, **({n: origin.source for n, origin in self.receipt.copied.items()} if self._copies else {})}
        counted = {name: old[s] for name, s in sources.items() if s in old and (name in entries or not old[s].entries)}
        used = {each for name in entries for each in (self.receipt.copied[name].sources if name in copied else (sources[name],))}
        dropped = sum(bool(kept.entries) for name, kept in old.items() if name not in used)
        return Carried(entries=entries, counted=counted, receipt=MomentsReceipt(kept=len(adopted), copied=len(copied), dropped=dropped))

    @property
    def _copies(self) -> bool:
        return self.moments == "copy"

    def _adopted(self, old: Mapping[str, Kept], declared: Mapping[str, Powers]) -> dict[str, dict[str, Any]]:
        """An adopted parameter keeps its own state."""
        carried = {}
        for name, before in self.receipt.adopted.items():
            entries = self._usable(old.get(before), declared.get(name))
            if entries is not None and name not in self.ended and not self._is_stale(before, entries, declared.get(name)):
                carried[name] = entries
        return carried

    def _copied(
        self, old: Mapping[str, Kept], weights: Mapping[str, torch.Tensor], declared: Mapping[str, Powers]
    ) -> dict[str, dict[str, Any]]:
        """A copied parameter has the state of its source, through the map that its values came by."""
        carried: dict[str, dict[str, Any]] = {}
        for name, origin in self.receipt.copied.items() if self._copies else ():
            if name in self.ended or (isinstance(origin, Combine) and origin.moments == "reset"):
                continue
            usable = {source: self._usable(old.get(source), declared.get(name)) for source in origin.sources}
            entries = {source: each for source, each in usable.items() if each is not None}
            if len(entries) == len(usable):
                mapped = map_entries(entries, weights[name], origin, declared.get(name), self.receipt.recast.get(name))
                carried |= {} if mapped is None else {name: mapped}
        return carried

    def _usable(self, kept: Kept | None, declared: Powers | None) -> dict[str, Any] | None:
        """The entries that the new optimizer can go on with; None: it starts anew."""
        if kept is None or not kept.entries or (not self.same and (declared is None or not self._copies)):
            return None
        if declared is None:
            return dict(kept.entries)
        if any(entry not in kept.entries for entry in declared):
            return None
        if self.same:
            gone = (declared if kept.powers is None else kept.powers).keys() - declared.keys()  # by another rule of the same optimizer
            return {entry: value for entry, value in kept.entries.items() if entry not in gone}
        return {entry: kept.entries[entry] for entry in declared}

    def _is_stale(self, before: str, entries: Entries, declared: Powers | None) -> bool:
        """Whether the parameter took in an adapter that its state, being a weight itself, knows nothing of."""
        return before in self.receipt.merged and any(power_of(entry, declared) == "weight" for entry in entries)


def power_of(entry: str, declared: Powers | None) -> int | str | None:
    """What an entry is made of; None where nobody says."""
    known = declared or {}
    return known[entry] if entry in known else TORCH_POWERS.get(entry)


def map_entries(
    sources: Mapping[str, Entries], weight: torch.Tensor, origin: Mapped, declared: Powers | None, was: torch.dtype | None = None
) -> dict[str, Any] | None:
    """State of a copied parameter; None where an entry cannot follow the map, so that the parameter starts anew.

    Args:
        sources: name of each source → its state.
        weight: the copy.
        origin: the map.
        declared: what its optimizer keeps, where it says so.
        was: dtype of its source, where it has another one: entries of the one become entries of the other.
    """
    mapped: dict[str, Any] = {}
    entries = sources[origin.source]
    if any(entry not in others for others in sources.values() for entry in entries):
        return None
    for entry, value in entries.items():
        power = power_of(entry, declared)
        if not isinstance(value, torch.Tensor) or value.dim() == 0 or power == 0:
            mapped[entry] = value.clone() if isinstance(value, torch.Tensor) else deepcopy(value)
        elif origin.whole:
            mapped[entry] = value.clone()
        elif power is None:
            return None
        else:
            new = mapped[entry] = torch.empty_like(weight.detach(), dtype=value.dtype)
            values = {name: others[entry] for name, others in sources.items()}
            if isinstance(power, int):
                fill_moment(new, values, origin, power, magnitude=entry in MAGNITUDES)
            else:
                new.copy_(weight.detach())
                fill(new, values, origin)
        if was is not None and isinstance(value, torch.Tensor) and value.dim() and value.dtype == was:
            mapped[entry] = mapped[entry].to(weight.dtype)
    return mapped


def park(carried: Carried, trainable: Collection[str]) -> dict[str, Kept]:
    """What goes on of parameters that do not learn now, with the rule and the counts of the torch group they came from."""
    frozen = {name: entries for name, entries in carried.entries.items() if name not in trainable}
    return {name: evolve(carried.counted.get(name, Kept()), entries=entries) for name, entries in frozen.items()}
