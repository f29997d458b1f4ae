"""The optimizer plane: which parameters learn, with which values at t, and what happens to their moments at a boundary."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from attrs import asdict, define, frozen
from torch import nn

from stackwise.contracts.protocols import ParameterGroup, Reaction, TrainsElsewhere
from stackwise.contracts.selectors import select
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import OptimizerState
from stackwise.curriculum.transitions import Enter
from stackwise.errors import ProviderError, UserError
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.optimizer.average import WeightAverage
from stackwise.planes.optimizer.moments import TORCH_POWERS, Crossing, MomentsReceipt, Powers
from stackwise.timeline.schedules import Curve

BuildOptimizer = Callable[[Part, float, Sequence[ParameterGroup]], torch.optim.Optimizer]

FRESH = ".fresh"
"""Ends the name of the part of a group that warms up again."""


@define
class _Followed:
    """One entry of one torch group that follows a curve."""

    group: dict[str, Any]
    key: str
    curve: Callable[[float], float]
    last: float
    is_rate: bool


@frozen
class _Membership:
    """What the torch group of a parameter says and counts of it."""

    moments: Powers | None
    """What the optimizer keeps for the parameter, where it says so."""
    changed: dict[str, Any]
    """Entries that the optimizer itself has changed."""


class OptimizerPlane:
    """Owns the optimizer; crosses declared states with every moment accounted for by name.

    Args:
        build: makes the optimizer of a declared part at run time t over parameter groups; None when it was given finished.
        build_reaction: makes the declared answer to the training signal.
    """

    def __init__(self, build: BuildOptimizer | None = None, build_reaction: Callable[[Part], Reaction] | None = None) -> None:
        self._build, self._build_reaction = build, build_reaction
        self._state: OptimizerState | None = None
        self._names: dict[str, nn.Parameter] = {}
        self._parked: dict[str, dict[str, Any]] = {}
        """State of frozen parameters, kept for the phase that thaws them."""
        self._parked_of: dict[str, _Membership] = {}
        """Of which torch group each of these was."""
        self._settled: set[nn.Parameter] = set()
        """Parameters that hold other weights since this boundary than those that their state belongs to."""
        self._followed: list[_Followed] = []
        self._factor = 1.0
        self._rewarming: tuple[str, ...] = ()
        self._rewarm: Curve | None = None
        self._decay: Curve | None = None
        self.average: WeightAverage | None = None
        self.reaction: Reaction | None = None
        self._built: list[dict[str, Any]] = []
        """The torch groups as they were built, without their parameters."""
        self.parameters: list[nn.Parameter] = []
        """The trainable parameters, each once."""
        self._shown: dict[str, Any] = {}
        """The torch group whose learning rate is told."""
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
        return float(self._shown.get("lr", 0.0))

    def enter(
        self,
        state: OptimizerState,
        parameters: Mapping[str, nn.Parameter],
        t: float,
        *,
        receipt: ModelReceipt | None = None,
        enter: Enter | None = None,
        fresh: Collection[str] = (),
    ) -> MomentsReceipt:
        """Cross into a declared state over the parameters that are trainable now.

        Args:
            state: the declaration to reach.
            parameters: canonical name → parameter of the model in place, each once, frozen ones included.
            t: run time at the boundary.
            receipt: what the model plane did to the parameters; None at the start.
            enter: the phase's policy for moments.
            fresh: parameters that warm up again, where no receipt says so because saved state follows.

        Raises:
            UserError: a group that selects nothing.
            ProviderError: the optimizer's parameters are not exactly the trainable ones.
        """
        was = {} if self._state is None else self._memberships()
        before, self._state = self._state, state
        trainable = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self.clip = state.clip
        self._rewarm = enter.rewarm if enter is not None else None
        warming = () if self._rewarm is None else fresh if receipt is None else receipt.fresh
        apart = tuple(name for name in warming if name in trainable)
        same = before is not None and before.part.structure == state.part.structure and _selection(before) == _selection(state)
        same = same and apart == self._rewarming
        unmoved = self._names.keys() == trainable.keys() and all(self._names[name] is p for name, p in trainable.items())
        if receipt is not None and receipt.moved:
            unmoved = False  # a frozen parameter may have moved, whose state is parked
        self._rewarming = apart
        if same and unmoved:
            moments = MomentsReceipt(kept=len(self.state_by_name()))
        else:
            moments = self._rebuild(before, state, parameters, trainable, t, receipt or ModelReceipt(), enter or Enter(), was)
        self._react_as(before, state)
        self._average_as(state, parameters, receipt or ModelReceipt())
        self._factor = state.lr_factor(sum(parameter.numel() for parameter in parameters.values()))
        self._follow(state, t)
        return moments

    def apply_values(self, t: float) -> None:
        """Set every followed entry to its value at t, where it changed."""
        factor = self._rate_factor
        for entry in self._followed:
            value = entry.curve(t)
            if entry.is_rate:
                value *= factor
            if value != entry.last:
                entry.group[entry.key] = entry.last = value

    def step(self, t: float) -> None:
        """One update of the weights, and of their average."""
        self.optimizer.step()
        if self.average is not None and self._decay is not None:
            self.average.update(self._decay(t))

    def watch(self, step: int, metrics: Mapping[str, float]) -> tuple[float, str] | None:
        """Show the declared reaction some numbers; the factor before and why it changed, when it did."""
        if self.reaction is None:
            return None
        before = self.reaction.factor
        why = self.reaction.watch(step, metrics)
        return None if why is None else (before, why)

    @contextmanager
    def evaluating(self, weights: str = "live") -> Iterator[None]:
        """The model with the weights to judge or keep: an optimizer that trains at other points shows its own, `ema` the average.

        Raises:
            UserError: an average asked for where none is kept.
        """
        optimizer = self.optimizer
        if isinstance(optimizer, TrainsElsewhere):
            optimizer.eval()
        try:
            if weights != "ema":
                yield
            elif self.average is None:
                raise UserError("an average of the weights is asked for in a phase that keeps none: declare optimizer.ema")
            else:
                with self.average.in_place():
                    yield
        finally:
            if isinstance(optimizer, TrainsElsewhere):
                optimizer.train()

    # -- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state by canonical parameter name, and what the optimizer itself changed in its groups; live, not copies."""
        return {
            "parameters": self.state_by_name(),
            "groups": self._changed(),
            "parked": {name: asdict(membership) for name, membership in self._parked_of.items()},
            "fresh": list(self._rewarming),
            "average": self.average.state_by_name() if self.average is not None else None,
            "reaction": self.reaction.state_dict() if self.reaction is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned into an optimizer that was entered into the same declared state.

        Raises:
            UserError: state of another shape than the parameter of that name, or another number of groups.
        """
        groups = self.optimizer.param_groups
        if len(state["groups"]) != len(groups):
            raise UserError(f"the saved optimizer has {len(state['groups'])} parameter groups, the declared one has {len(groups)}")
        self.load_state_by_name(state["parameters"])
        self._parked_of = {name: _Membership(**saved) for name, saved in state.get("parked", {}).items()}
        for group, saved in zip(groups, state["groups"], strict=True):
            group.update(saved)
        if (state["average"] is None) != (self.average is None) or (state["reaction"] is None) != (self.reaction is None):
            raise UserError("an average or a reaction was saved and is not declared, or is declared and was not saved")
        if self.average is not None:
            self.average.load_state_by_name(state["average"])
        if self.reaction is not None:
            self.reaction.load_state_dict(state["reaction"])

    def _changed(self) -> list[dict[str, Any]]:
        """For each torch group what the optimizer itself has changed in it."""
        return [
            {key: value for key, value in group.items() if key not in ("params", *followed) and _differ(value, built.get(key))}
            for group, built, followed in zip(self.optimizer.param_groups, self._built, self._curves(), strict=True)
        ]

    def _memberships(self) -> dict[str, _Membership]:
        """Name → what its torch group says and counts of it, those of frozen parameters as they were."""
        names = {id(parameter): name for name, parameter in self._names.items()}
        memberships = dict(self._parked_of)
        for group, changed in zip(self.optimizer.param_groups, self._changed(), strict=True):
            membership = _Membership(_moments(group), changed)
            memberships.update((names[id(parameter)], membership) for parameter in group["params"])
        return memberships

    def _curves(self) -> list[frozenset[str]]:
        """For each torch group the entries that follow a declared curve."""
        declared = {group.name: group.curves for group in self._state.groups} if self._state is not None else {}
        return [frozenset(declared.get(group.get("group", "default").removesuffix(FRESH), ())) for group in self.optimizer.param_groups]

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
            shaped = groups[id(parameter)].get("moments", TORCH_POWERS)
            for key, value in entries.items():
                if key in shaped and isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                    raise UserError(f"saved {key} of {name} has shape {tuple(value.shape)}, the parameter has {tuple(parameter.shape)}")
        for name, parameter in self._names.items():
            if name in state:
                group = groups[id(parameter)]
                on_device = bool(group.get("fused") or group.get("capturable"))
                self.optimizer.state[parameter] = {k: _beside(v, parameter, on_device) for k, v in state[name].items()}

    # -- crossing -------------------------------------------------------------------------------------------------

    def leave(self, state: OptimizerState) -> None:
        """Before anything crosses: where another optimizer takes over, every parameter leaves the one in place."""
        if self._state is not None and self._state.part.id != state.part.id:
            self.settle(self.parameters)

    def settle(self, leaving: Iterable[nn.Parameter]) -> None:
        """Let parameters that the optimizer will not train any more hold the weights to keep, where it trained at others; the state that
        belongs to those ends."""
        if not self._names or not isinstance(self.optimizer, TrainsElsewhere):
            return
        moved = [parameter for parameter in leaving if parameter not in self._settled and self.optimizer.state.get(parameter)]
        with self.evaluating() if moved else nullcontext():
            kept = [parameter.detach().clone() for parameter in moved]
        for parameter, value in zip(moved, kept, strict=True):
            parameter.detach().copy_(value)
        self._settled.update(moved)

    def _hold(
        self,
        optimizer: torch.optim.Optimizer,
        trainable: Mapping[str, nn.Parameter],
        inherited: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.optimizer, self._names, self.parameters = optimizer, dict(trainable), list(trainable.values())
        groups = optimizer.param_groups
        self._built = [deepcopy({key: value for key, value in group.items() if key != "params"}) for group in groups]
        for group, entries in zip(groups, inherited, strict=False):
            group.update(deepcopy(dict(entries)))
        self._shown = next((group for group in groups if group.get("group") == "default"), groups[0])
        if isinstance(optimizer, TrainsElsewhere):
            optimizer.train()

    def _by_name(self) -> dict[str, dict[str, Any]]:
        state = self.optimizer.state if self._names else {}
        return {name: state[p] for name, p in self._names.items() if state.get(p)}

    def _rebuild(
        self,
        before: OptimizerState | None,
        state: OptimizerState,
        parameters: Mapping[str, nn.Parameter],
        trainable: Mapping[str, nn.Parameter],
        t: float,
        receipt: ModelReceipt,
        enter: Enter,
        was: Mapping[str, _Membership],
    ) -> MomentsReceipt:
        if self._build is None:
            raise UserError(
                "the optimizer was given as a finished object, so no phase can change what it trains: give a Built(callable, options)"
            )
        old = self.state_by_name() if before is not None else {}
        frozen_names = parameters.keys() - trainable.keys()
        optimizer = self._build(state.part, t, group_parameters(state, trainable, t, apart=self._rewarming, frozen=frozen_names))
        _check_membership(optimizer, trainable, ProviderError)
        same = before is not None and before.part.id == state.part.id and type(optimizer) is type(self.optimizer)
        if not same:
            self.settle(self.parameters)  # what `leave` could not know: a component of the same id may make another optimizer
        ended = {name for name in receipt.adopted if parameters[name] in self._settled}
        said = {name: membership.moments for name, membership in was.items() if membership.moments is not None}
        crossing = Crossing(receipt=receipt, same=same, moments=enter.moments, ended=ended, was=said)
        moments = crossing.carry(old, parameters, _declared(optimizer, trainable))
        carried = {**crossing.kept, **crossing.copied}
        for name, parameter in trainable.items():
            if name in carried:
                optimizer.state[parameter] = carried[name]
        going_on = {
            name: was[source] for name, source in crossing.sources.items() if source in was and (name in carried or source not in old)
        }
        inherited = _inherited(optimizer, trainable, going_on) if same else ()
        self._parked = {name: entries for name, entries in carried.items() if name not in trainable}
        self._parked_of = {name: going_on[name] for name in self._parked if name in going_on}
        self._settled = set()
        self._hold(optimizer, trainable, inherited)
        return moments

    def _react_as(self, before: OptimizerState | None, state: OptimizerState) -> None:
        part, last = state.reaction, before.reaction if before is not None else None
        if part is None:
            self.reaction = None
        elif last is None or last.structure != part.structure:
            assert self._build_reaction is not None  # a declared reaction comes from a plan, which brings its builder
            self.reaction = self._build_reaction(part)

    def _average_as(self, state: OptimizerState, parameters: Mapping[str, nn.Parameter], receipt: ModelReceipt) -> None:
        self._decay = state.ema
        if state.ema is None:
            self.average = None
            return
        if self.average is None:
            self.average = WeightAverage()
            receipt = ModelReceipt()
        self.average.enter(parameters, receipt)

    # -- values ---------------------------------------------------------------------------------------------------

    @property
    def _rate_factor(self) -> float:
        return self._factor if self.reaction is None else self._factor * self.reaction.factor

    def _follow(self, state: OptimizerState, t: float) -> None:
        curves = {group.name: group.curves for group in state.groups}
        self._followed = []
        for group in self.optimizer.param_groups:
            name, fixed = group.get("group", "default"), group.get("fixed", ())
            warming = self._rewarm if name.endswith(FRESH) else None
            for key, curve in curves.get(name.removesuffix(FRESH), {}).items():
                if key not in group or key in fixed:
                    continue
                is_rate = key == "lr" or key.endswith("_lr")
                value = curve if warming is None or not is_rate else _product(curve, warming)
                group[key] = value(t) * self._rate_factor if is_rate else value(t)
                moves = not curve.is_constant or (is_rate and (warming is not None or self.reaction is not None))
                if moves:
                    self._followed.append(_Followed(group, key, value, group[key], is_rate))


def _product(one: Curve, other: Curve) -> Callable[[float], float]:
    return lambda t: one(t) * other(t)


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


def _declared(optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter]) -> dict[str, Powers]:
    """Name → what the optimizer says it keeps for the parameter."""
    names = {id(parameter): name for name, parameter in trainable.items()}
    said = [(_moments(group), group["params"]) for group in optimizer.param_groups]
    return {names[id(p)]: moments for moments, parameters in said if moments is not None for p in parameters}


def _moments(group: Mapping[str, Any]) -> Powers | None:
    """What a torch group says that it keeps for each of its parameters; None where it says nothing."""
    return group.get("moments") or None


def _inherited(
    optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter], going_on: Mapping[str, _Membership]
) -> list[Mapping[str, Any]]:
    """For each torch group what the optimizer had changed in the groups that its parameters come from.

    Raises:
        UserError: parameters of one group that were counted apart, or of which some begin to count.
    """
    names = {id(parameter): name for name, parameter in trainable.items()}
    return [_shared(type(optimizer).__name__, [names[id(p)] for p in group["params"]], going_on) for group in optimizer.param_groups]


def _shared(optimizer: str, names: Sequence[str], going_on: Mapping[str, _Membership]) -> Mapping[str, Any]:
    """What the groups that these parameters come from have in common, which must be all."""
    older = [name for name in names if name in going_on]
    if not older:
        return {}
    first, *others = older
    own = going_on[first].changed
    for other in others:
        theirs = going_on[other].changed
        if apart := [key for key in {**own, **theirs} if key not in own or key not in theirs or _differ(own[key], theirs[key])]:
            raise UserError(
                f"{optimizer} counts in its parameter groups ({', '.join(apart)}), and {first} and {other}, which it counted apart, "
                f"cannot have one count: keep them in groups of their own, {_OTHERWISE}"
            )
    counts = [key for key, value in own.items() if isinstance(value, int | float | torch.Tensor) and not isinstance(value, bool)]
    begun = [name for name in names if name not in going_on]
    if counts and begun:
        raise UserError(
            f"{optimizer} counts in its parameter groups ({', '.join(counts)}), where {begun[0]}, which begins at this boundary, cannot "
            f"have a count of its own beside {first}: give what begins a group of its own, {_OTHERWISE}"
        )
    return own


_OTHERWISE = "take an optimizer that counts for each parameter, or declare another optimizer in this phase"


def group_parameters(
    state: OptimizerState,
    trainable: Mapping[str, nn.Parameter],
    t: float,
    *,
    apart: Collection[str] = (),
    frozen: Collection[str] = (),
) -> list[ParameterGroup]:
    """Hand every parameter to the first group that selects it; the group without selectors takes the rest.

    Args:
        state: the declared groups.
        trainable: canonical name → parameter.
        t: run time at which values are taken.
        apart: names that get a group of their own beside that of their like.
        frozen: names that selectors may name as well; a group of frozen parameters alone is left out while they are.

    Raises:
        SelectorError: a selector that matches nothing.
        UserError: a group that is left with nothing, because groups before it took all.
    """
    left = dict(trainable)
    groups = []
    for group in state.groups:
        names = select(group.select, [*trainable, *frozen]) if group.select else list(left)
        taken = {name: left.pop(name) for name in names if name in left}
        if group.select and not taken and any(name in trainable for name in names):
            raise UserError(
                f"optimizer.groups.{group.name} selects only parameters that groups before it already took: "
                "change the order or the selectors"
            )
        values = {key: curve(t) for key, curve in group.curves.items()}
        for name, parameters in (
            (group.name, {n: p for n, p in taken.items() if n not in apart}),
            (group.name + FRESH, {n: p for n, p in taken.items() if n in apart}),
        ):
            if parameters:
                groups.append(ParameterGroup(name=name, parameters=parameters, values=dict(values)))
    return groups


def _check_membership(
    optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter], fault: type[UserError] | type[ProviderError]
) -> None:
    """Trainable parameters and optimizer parameters are the same set, by identity, each once."""
    slots = [id(p) for group in optimizer.param_groups for p in group["params"]]
    held, names = set(slots), {id(p): name for name, p in trainable.items()}
    missing, extra, again = [name for key, name in names.items() if key not in held], held - names.keys(), len(slots) - len(held)
    if missing or extra or again:
        raise fault(
            f"{type(optimizer).__name__} must hold each trainable parameter once: missing {missing or 'none'}, "
            f"not trainable {len(extra)}, held twice {again}"
        )
