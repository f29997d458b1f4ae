"""Which parameters learn together, and which values they follow: the declared groups, and their curves in the torch groups."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from attrs import define
from torch import nn

from stackwise.contracts.protocols import ParameterGroup
from stackwise.contracts.selectors import select
from stackwise.curriculum.states import GroupState, OptimizerState
from stackwise.errors import UserError
from stackwise.timeline.schedules import Curve

WARMING = ".fresh"
"""Ends the name of that part of a group which warms up again."""


def declared_name(torch_group: Mapping[str, Any]) -> str:
    """The declared group that a torch group belongs to."""
    name: str = torch_group.get("group", "default")
    return name.removesuffix(WARMING)


def group_parameters(
    state: OptimizerState,
    trainable: Mapping[str, nn.Parameter],
    t: float,
    *,
    warming: Collection[str] = (),
    frozen: Collection[str] = (),
) -> list[ParameterGroup]:
    """Hand every parameter to the first group that selects it; the group without selectors takes the rest.

    Args:
        state: the declared groups.
        trainable: canonical name → what learns.
        t: run time of the values to build the optimizer with.
        warming: names that get a group of their own beside that of their like.
        frozen: names that selectors may name as well; a group of frozen parameters alone is left out while they are.

    Raises:
        SelectorError: a selector that matches nothing.
        UserError: a group that is left with nothing, because groups before it took all.
    """
    left = dict(trainable)
    groups = []
    for group in state.groups:
        values = {key: curve(t) for key, curve in group.curves.items()}
        for name, parameters in _split(group, _members(group, left, trainable, frozen), warming):
            groups.append(ParameterGroup(name=name, parameters=parameters, values=dict(values)))
    return groups


def _members(
    group: GroupState, left: dict[str, nn.Parameter], trainable: Mapping[str, nn.Parameter], frozen: Collection[str]
) -> dict[str, nn.Parameter]:
    """What a group takes out of those that are left."""
    names = select(group.select, [*trainable, *frozen]) if group.select else list(left)
    members = {name: left.pop(name) for name in names if name in left}
    if group.select and not members and any(name in trainable for name in names):
        raise UserError(
            f"optimizer.groups.{group.name} selects only parameters that groups before it already took: change the order or the selectors"
        )
    return members


def _split(
    group: GroupState, members: Mapping[str, nn.Parameter], warming: Collection[str]
) -> Iterator[tuple[str, dict[str, nn.Parameter]]]:
    """The members that go on and those that warm up, where there are any."""
    steady = {name: parameter for name, parameter in members.items() if name not in warming}
    rest = {name: parameter for name, parameter in members.items() if name in warming}
    if steady:
        yield group.name, steady
    if rest:
        yield group.name + WARMING, rest


def selection(state: OptimizerState) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """What the torch groups depend on: names, selectors and the values that groups follow."""
    return [(group.name, group.select, tuple(group.curves)) for group in state.groups]


@define
class _Entry:
    """One entry of one torch group that follows a curve."""

    group: dict[str, Any]
    key: str
    curve: Curve
    rewarm: Curve | None
    """Factor on a learning rate that warms up again."""
    is_rate: bool


class Values:
    """The entries of the torch groups that follow declared curves.

    Args:
        optimizer: its groups name the declared group they belong to; what they name in `fixed` does not follow.
        state: the declared groups and their curves.
        factor: on every learning rate, for the size of the model.
        rewarm: on the learning rates of the groups that warm up again.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, state: OptimizerState, *, factor: float, rewarm: Curve | None) -> None:
        curves = {group.name: group.curves for group in state.groups}
        reacts = state.reaction is not None
        entries = []
        for group in optimizer.param_groups:
            warming = rewarm if group.get("group", "").endswith(WARMING) else None
            for key, curve in curves.get(declared_name(group), {}).items():
                is_rate = key == "lr" or key.endswith("_lr")
                if key in group and key not in group.get("fixed", ()):
                    entries.append(_Entry(group, key, curve, warming if is_rate else None, is_rate))
        self._factor = factor
        self._due = entries
        self._moving = [e for e in entries if not e.curve.is_constant or e.rewarm is not None or (e.is_rate and reacts)]

    @property
    def moves(self) -> bool:
        """Whether any of them changes once it is in force."""
        return bool(self._moving)

    def apply(self, t: float, reaction: float) -> None:
        """Put the values at t in force: all of them the first time, later those that move.

        Args:
            t: run time.
            reaction: a further factor on every learning rate.
        """
        factor = self._factor * reaction
        for entry in self._due:
            value = entry.curve(t)
            if entry.rewarm is not None:
                value *= entry.rewarm(t)
            if entry.is_rate:
                value *= factor
            entry.group[entry.key] = value
        self._due = self._moving
