"""The optimizer plane: which parameters learn, with which values at t, and what happens to their moments at a boundary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from attrs import define, frozen
from torch import nn

from stackwise.contracts import CopyOf, ParameterGroup
from stackwise.errors import ProviderError, UserError
from stackwise.phases import Enter, OptimizerState, Part
from stackwise.planes.model import ModelReceipt
from stackwise.selectors import select


@frozen(kw_only=True)
class MomentsReceipt:
    """What crossing into a state did to optimizer state, in parameters, frozen ones included."""

    kept: int = 0
    copied: int = 0
    dropped: int = 0


_SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
"""Entries that torch's optimizers shape like their parameter; others may have any shape (factored moments)."""

BuildOptimizer = Callable[[Part, float, Sequence[ParameterGroup]], torch.optim.Optimizer]


@define
class _Followed:
    """One entry of one torch group that follows a curve."""

    group: dict[str, Any]
    key: str
    curve: Callable[[float], float]
    last: float


class OptimizerPlane:
    """Owns the optimizer; crosses declared states with every moment accounted for by name.

    Args:
        build: makes the optimizer of a declared part at run time t over parameter groups; None when it was given finished.
    """

    def __init__(self, build: BuildOptimizer | None = None) -> None:
        self._build = build
        self._state: OptimizerState | None = None
        self._names: dict[str, nn.Parameter] = {}
        self._parked: dict[str, dict[str, Any]] = {}
        """State of frozen parameters, kept for the phase that thaws them."""
        self._followed: list[_Followed] = []
        self._built: list[dict[str, Any]] = []
        """The torch groups as they were built, without their parameters."""
        self.parameters: list[nn.Parameter] = []
        """The trainable parameters, each once."""
        self.clip: float | None = None
        self.optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter]) -> OptimizerPlane:
        """A plane around a finished optimizer over the model's trainable parameters.

        Raises:
            UserError: the optimizer's parameters are not exactly the model's trainable ones.
        """
        plane = cls()
        plane._hold(optimizer, trainable)
        _check_membership(optimizer, trainable, UserError)
        return plane

    @property
    def lr(self) -> float:
        """The learning rate in force for the parameters that no group takes; of the first group where groups take them all."""
        groups = self.optimizer.param_groups
        return float(next((group for group in groups if group.get("group") == "default"), groups[0]).get("lr", 0.0))

    def enter(
        self,
        state: OptimizerState,
        trainable: Mapping[str, nn.Parameter],
        t: float,
        *,
        receipt: ModelReceipt | None = None,
        enter: Enter | None = None,
    ) -> MomentsReceipt:
        """Cross into a declared state over the parameters that are trainable now.

        Args:
            state: the declaration to reach.
            trainable: canonical name → parameter, each once.
            t: run time at the boundary.
            receipt: what the model plane did to the parameters; None at the start.
            enter: the phase's policy for moments.

        Raises:
            UserError: a group that selects nothing.
            ProviderError: the optimizer's parameters are not exactly the trainable ones.
        """
        before, self._state = self._state, state
        self.clip = state.clip
        same = before is not None and before.part.structure == state.part.structure and _selection(before) == _selection(state)
        unmoved = self._names.keys() == trainable.keys() and all(self._names[name] is p for name, p in trainable.items())
        if receipt is not None and (receipt.copied or receipt.fresh or receipt.dropped):
            unmoved = False  # a frozen parameter may have moved, whose state is parked
        if same and unmoved:
            moments = MomentsReceipt(kept=len(self.state_by_name()))
        else:
            moments = self._rebuild(before, state, trainable, t, receipt or ModelReceipt(), enter or Enter())
        self._follow(state, t)
        return moments

    def apply_values(self, t: float) -> None:
        """Set every followed entry to its value at t, where it changed."""
        for entry in self._followed:
            value = entry.curve(t)
            if value != entry.last:
                entry.group[entry.key] = entry.last = value

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state by canonical parameter name, and what the optimizer itself changed in its groups; live, not copies."""
        groups = [
            {key: value for key, value in group.items() if key not in ("params", *followed) and _differ(value, built.get(key))}
            for group, built, followed in zip(self.optimizer.param_groups, self._built, self._curves(), strict=True)
        ]
        return {"parameters": self.state_by_name(), "groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned into an optimizer that was entered into the same declared state.

        Raises:
            UserError: state of another shape than the parameter of that name, or another number of groups.
        """
        groups = self.optimizer.param_groups
        if len(state["groups"]) != len(groups):
            raise UserError(f"the saved optimizer has {len(state['groups'])} parameter groups, the declared one has {len(groups)}")
        self.load_state_by_name(state["parameters"])
        for group, saved in zip(groups, state["groups"], strict=True):
            group.update(saved)

    def _curves(self) -> list[frozenset[str]]:
        """For each torch group the entries that follow a declared curve."""
        declared = {group.name: group.curves for group in self._state.groups} if self._state is not None else {}
        return [frozenset(declared.get(group.get("group", "default"), ())) for group in self.optimizer.param_groups]

    def state_by_name(self) -> dict[str, dict[str, Any]]:
        """Optimizer state by canonical parameter name, that of frozen parameters included."""
        return {**self._parked, **self._by_name()}

    def load_state_by_name(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `state_by_name` returned.

        Raises:
            UserError: state of another shape than the parameter of that name.
        """
        groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        for name, entries in state.items():
            if name not in self._names:
                self._parked[name] = dict(entries)
                continue
            parameter = self._names[name]
            shaped = groups[id(parameter)].get("moments", _SHAPED)
            for key, value in entries.items():
                if key in shaped and isinstance(value, torch.Tensor) and value.shape != parameter.shape:
                    raise UserError(f"saved {key} of {name} has shape {tuple(value.shape)}, the parameter has {tuple(parameter.shape)}")
        for name, parameter in self._names.items():
            if name in state:
                group = groups[id(parameter)]
                on_device = bool(group.get("fused") or group.get("capturable"))
                self.optimizer.state[parameter] = {k: _beside(v, parameter, on_device) for k, v in state[name].items()}

    def _hold(self, optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter]) -> None:
        self.optimizer, self._names, self.parameters = optimizer, dict(trainable), list(trainable.values())
        self._built = [deepcopy({key: value for key, value in group.items() if key != "params"}) for group in optimizer.param_groups]

    def _by_name(self) -> dict[str, dict[str, Any]]:
        state = self.optimizer.state if self._names else {}
        return {name: state[p] for name, p in self._names.items() if state.get(p)}

    def _rebuild(
        self,
        before: OptimizerState | None,
        state: OptimizerState,
        trainable: Mapping[str, nn.Parameter],
        t: float,
        receipt: ModelReceipt,
        enter: Enter,
    ) -> MomentsReceipt:
        if self._build is None:
            raise UserError(
                "the optimizer was given as a finished object, so no phase can change what it trains: give a Built(callable, options)"
            )
        old = {**self._parked, **self._by_name()}
        optimizer = self._build(state.part, t, group_parameters(state, trainable, t))
        _check_membership(optimizer, trainable, ProviderError)
        kept: dict[str, dict[str, Any]] = {}
        copied: dict[str, dict[str, Any]] = {}
        if before is not None and before.part.id == state.part.id:
            kept = {name: old[name] for name in receipt.adopted if name in old}
            if enter.moments == "copy":
                copied = {name: _copy_state(old[origin.source], origin) for name, origin in receipt.copied.items() if origin.source in old}
        carried = {**kept, **copied}
        for name, parameter in trainable.items():
            if name in carried:
                optimizer.state[parameter] = carried[name]
        self._parked = {name: entries for name, entries in carried.items() if name not in trainable}
        self._hold(optimizer, trainable)
        used = kept.keys() | {receipt.copied[name].source for name in copied}
        return MomentsReceipt(kept=len(kept), copied=len(copied), dropped=len(old.keys() - used))

    def _follow(self, state: OptimizerState, t: float) -> None:
        curves = {group.name: group.curves for group in state.groups}
        self._followed = []
        for group in self.optimizer.param_groups:
            fixed = group.get("fixed", ())
            for key, curve in curves.get(group.get("group", "default"), {}).items():
                if key in group and key not in fixed:
                    group[key] = curve(t)
                    if not curve.is_constant:
                        self._followed.append(_Followed(group, key, curve, group[key]))


def _differ(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return not torch.equal(left, right)
    return isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor) or bool(left != right)


def _beside(value: Any, parameter: nn.Parameter, on_device: bool) -> Any:
    """A copy of a saved entry where the optimizer expects it: at its parameter; a step counter on the CPU unless kernels read it."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(parameter.device if value.dim() or on_device else "cpu", copy=True)


def _selection(state: OptimizerState) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(group.name, group.select, tuple(group.curves)) for group in state.groups]


def group_parameters(state: OptimizerState, trainable: Mapping[str, nn.Parameter], t: float) -> list[ParameterGroup]:
    """Hand every parameter to the first group that selects it; the group without selectors takes the rest."""
    left = dict(trainable)
    groups = []
    for group in state.groups:
        names = select(group.select, trainable) if group.select else list(left)
        parameters = {name: left.pop(name) for name in names if name in left}
        if group.select and not parameters:
            raise UserError(
                f"optimizer.groups.{group.name} selects only parameters that groups before it already took: "
                "change the order or the selectors"
            )
        if parameters:
            groups.append(
                ParameterGroup(name=group.name, parameters=parameters, values={key: curve(t) for key, curve in group.curves.items()})
            )
    return groups


def _copy_state(entries: Mapping[str, Any], origin: CopyOf) -> dict[str, Any]:
    """A copy of optimizer state for a copied parameter; entries shaped like the parameter follow the same index."""
    copied = {}
    for key, value in entries.items():
        if isinstance(value, torch.Tensor):
            copied[key] = value[list(origin.index[0])].clone() if origin.index and value.dim() else value.clone()
        else:
            copied[key] = value
    return copied


def _check_membership(
    optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter], fault: type[UserError] | type[ProviderError]
) -> None:
    """Trainable parameters and optimizer parameters are the same set, by identity, each once."""
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): name for name, p in trainable.items()}
    missing = [name for key, name in names.items() if key not in set(held)]
    if missing or len(held) != len(set(held)) or set(held) - names.keys():
        extra = len(set(held) - names.keys())
        raise fault(
            f"{type(optimizer).__name__} must hold each trainable parameter once: missing {missing or 'none'}, "
            f"not trainable {extra}, held twice {len(held) - len(set(held))}"
        )
