"""A torch optimizer spoken to by the names of its parameters; torch itself knows them by their place in a list.

`torch.optim.Optimizer.load_state_dict` goes by position and swaps two parameters of one shape without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from typing import Any, cast

import torch
from torch import nn
from torch._C._autograd import _profiler_enabled
from torch.autograd import profiler

from stackwise.contracts.answers import calling
from stackwise.contracts.protocols import TrainsElsewhere
from stackwise.errors import ProviderError, UserError
from stackwise.planes.optimizer.groups import declared_name
from stackwise.planes.optimizer.moments import TORCH_POWERS, Entries, Kept, Powers
from stackwise.planes.shards import is_part, laid_as


class NamedOptimizer:
    """An optimizer, the names of what it holds, and what it has changed in its own torch groups since it was built.

    Args:
        torch_optimizer: holds each of `parameters` once and nothing else.
        parameters: canonical name → what learns.
        followed: declared group → entries of its torch groups that follow curves and are not counts of the optimizer.
        fault: raised where the parameters are others.
        component: its id; empty for a finished optimizer.

    Raises:
        UserError: an optimizer that cannot step here.
        UserError, ProviderError: the optimizer's parameters are not exactly these.
    """

    def __init__(
        self,
        torch_optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, nn.Parameter],
        followed: Mapping[str, Collection[str]],
        fault: type[UserError] | type[ProviderError],
        component: str = "",
    ) -> None:
        self.torch, self._component, self._fault = torch_optimizer, component, fault
        self.parameters = dict(parameters)
        _check_fits(torch_optimizer)
        _check_members(torch_optimizer, parameters, fault)
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._wrapper = type(torch_optimizer).step
        self._own_step, self._step_hooks = _own_step(torch_optimizer)
        self._built = [deepcopy({key: value for key, value in g.items() if key != "params"}) for g in torch_optimizer.param_groups]
        self._followed = [frozenset(followed.get(declared_name(group), ())) for group in torch_optimizer.param_groups]
        self.train()

    @property
    def trains_elsewhere(self) -> bool:
        """Whether parameters hold other weights in training than those to judge and keep."""
        return isinstance(self.torch, TrainsElsewhere)

    def train(self) -> None:
        """Put the weights in place that an optimizer which trains elsewhere trains at."""
        if isinstance(self.torch, TrainsElsewhere):
            with calling(self._component, "train"):
                self.torch.train()

    def judge(self) -> None:
        """Put the weights to judge and to keep in place of those."""
        if isinstance(self.torch, TrainsElsewhere):
            with calling(self._component, "eval"):
                self.torch.eval()

    def step(self) -> None:
        """One update; past the record for a profiler that torch wraps around it, unless somebody profiles, hooks or replaced it.

        An `ExecutionTraceObserver` of torch cannot be seen from here, and misses the record of this one call.
        """
        optimizer = self.torch
        replaced = type(optimizer).step is not self._wrapper or "step" in vars(optimizer)
        if self._own_step is None or replaced or any(self._step_hooks) or _profiler_enabled() or profiler._is_profiler_enabled:
            optimizer.step()
        else:
            self._own_step(optimizer)

    @property
    def default_group(self) -> Mapping[str, Any]:
        """The torch group of the parameters that no declared group takes; the first one where groups take them all."""
        groups = self.torch.param_groups
        if len(groups) == 1:
            return groups[0]
        return next((group for group in groups if group.get("group") == "default"), groups[0])

    def entries(self) -> dict[str, dict[str, Any]]:
        """State by name; the live entries, not copies."""
        state = self.torch.state
        return {name: state[parameter] for name, parameter in self.parameters.items() if state.get(parameter)}

    def counts(self) -> list[dict[str, Any]]:
        """For each torch group what the optimizer itself has changed in it."""
        return [
            {key: value for key, value in group.items() if key not in ("params", *followed) and _differ(value, built.get(key))}
            for group, built, followed in zip(self.torch.param_groups, self._built, self._followed, strict=True)
        ]

    def check_savable(self) -> None:
        """Look at its whole state before it is saved: it may have changed its form at any step.

        Raises:
            UserError, ProviderError: a checkpoint cannot hold it, or a resume would refuse it.
        """
        called, groups = type(self.torch).__name__, self._groups()
        with calling(self._component, "state"):
            for name, entries in self.entries().items():
                if (found := _unsavable(entries, f"state of {name}: ")) is not None:
                    raise self._fault(_no_state(called, *found))
                parameter = self.parameters[name]
                for key, value in _misshaped(entries, parameter, groups[name].get("moments", TORCH_POWERS)):
                    shapes = f"shape {list(value.shape)} for {name}, which has {list(parameter.shape)}"
                    raise self._fault(f"the optimizer {called} keeps {key} of {shapes}, so a resume could not take it up")
            for index, counts in enumerate(self.counts()):
                if (found := _unsavable(counts, f"param_groups.{index}.")) is not None:
                    raise self._fault(_no_state(called, *found))

    def powers(self) -> dict[str, Powers]:
        """Name → what the optimizer says that it keeps, where it says so."""
        groups = self._groups()
        return {name: group["moments"] for name, group in groups.items() if group.get("moments")}

    def kept(self) -> dict[str, Kept]:
        """Everything that it keeps of each parameter."""
        groups, entries, powers = self._groups(), self.entries(), self.powers()
        counts = {id(group): changed for group, changed in zip(self.torch.param_groups, self.counts(), strict=True)}
        return {
            name: Kept(entries=entries.get(name, {}), powers=powers.get(name), counts=counts[id(groups[name])]) for name in self.parameters
        }

    def go_on(self, entries: Mapping[str, dict[str, Any]], counted: Mapping[str, Kept]) -> None:
        """Take over the state of parameters that do not start anew.

        Args:
            entries: name → state.
            counted: name → what was kept of the parameter it goes on from; empty: nothing is counted on.

        Raises:
            UserError: parameters of one torch group were counted apart, or some of them only begin to count.
        """
        for name, parameter in self.parameters.items():
            if name in entries:
                self.torch.state[parameter] = entries[name]
        called = type(self.torch).__name__
        common = [_common_counts(called, [self._names[id(p)] for p in group["params"]], counted) for group in self.torch.param_groups]
        for group, counts in zip(self.torch.param_groups, common, strict=True):
            group.update(deepcopy(dict(counts)))

    def load(self, entries: Mapping[str, Entries], counts: Sequence[Mapping[str, Any]]) -> None:
        """Restore what `entries` and `counts` returned of an optimizer of the same declaration.

        Raises:
            UserError: state of another shape than the parameter of that name, or another number of groups; nothing is written then.
        """
        if len(counts) != len(self.torch.param_groups):
            raise UserError(f"the saved optimizer has {len(counts)} parameter groups, the declared one has {len(self.torch.param_groups)}")
        self.load_entries(entries)
        for group, saved in zip(self.torch.param_groups, counts, strict=True):
            group.update(saved)

    def load_entries(self, entries: Mapping[str, Entries]) -> None:
        """Restore what `entries` returned; names that it does not hold are passed over.

        Raises:
            UserError: state of another shape than the parameter of that name; nothing is written then.
        """
        groups = self._groups()
        for name in self.parameters.keys() & entries.keys():
            _check_shapes(name, entries[name], self.parameters[name], groups[name].get("moments", TORCH_POWERS))
        for name, parameter in self.parameters.items():
            if name in entries:
                on_device = bool(groups[name].get("fused") or groups[name].get("capturable"))
                self.torch.state[parameter] = {key: _beside(value, parameter, on_device) for key, value in entries[name].items()}

    def _groups(self) -> dict[str, dict[str, Any]]:
        """Name → its torch group."""
        return {self._names[id(parameter)]: group for group in self.torch.param_groups for parameter in group["params"]}


def _own_step(optimizer: torch.optim.Optimizer) -> tuple[Callable[[Any], object] | None, tuple[Mapping[Any, Any], ...]]:
    """The step below torch's wrapper, which opens a record for a profiler and calls hooks, and where these hooks are.

    The wrapper takes a tenth of a step of a small model. None where torch wraps or keeps hooks otherwise than it does today.
    """
    step, wrap = type(optimizer).step, getattr(torch.optim.Optimizer, "profile_hook_step", None)
    is_wrapped = wrap is not None and getattr(step, "__code__", None) is wrap(torch.optim.Optimizer.step).__code__
    own = getattr(step, "__wrapped__", None) if is_wrapped else None
    everywhere = import_module(torch.optim.Optimizer.__module__)
    own_hooks = [getattr(optimizer, f"_optimizer_step_{when}_hooks", None) for when in ("pre", "post")]
    hooks = [*own_hooks, *(getattr(everywhere, f"_global_optimizer_{when}_hooks", None) for when in ("pre", "post"))]
    known = tuple(each for each in hooks if each is not None)
    return (own, known) if len(known) == len(hooks) else (None, ())


def _check_fits(optimizer: torch.optim.Optimizer) -> None:
    """An optimizer moves weights by the dense gradients of one backward pass, and evaluates nothing itself."""
    name = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"{name} evaluates the loss several times a step, by a closure, and a step here has one gradient: "
            "write an optimizer that steps by it, such as torch.optim.AdamW or SGD"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise UserError(f"{name} takes sparse gradients alone, and gradients here are dense: write torch.optim.Adam")


def _check_members(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], fault: type[UserError] | type[ProviderError]
) -> None:
    """What learns and what the optimizer holds are the same set, by identity, each once."""
    slots = [id(p) for group in optimizer.param_groups for p in group["params"]]
    held, names = set(slots), {id(p): name for name, p in parameters.items()}
    missing, extra, again = [name for key, name in names.items() if key not in held], held - names.keys(), len(slots) - len(held)
    if missing or extra or again:
        called = type(optimizer).__name__
        others = f"; they are another module's: give Built({called}, lr=…), which is given those of this one"
        form = others if extra and len(missing) == len(names) else ""
        raise fault(
            f"{called} must hold each trainable parameter once: missing {missing or 'none'}, "
            f"not trainable {len(extra)}, held twice {again}{form}"
        )


def _check_shapes(name: str, entries: Entries, parameter: torch.Tensor, shaped: Collection[str]) -> None:
    for key, value in _misshaped(entries, parameter, shaped):
        raise UserError(f"saved {key} of {name} has shape {tuple(value.shape)}, the parameter has {tuple(parameter.shape)}")


def _misshaped(entries: Entries, parameter: torch.Tensor, shaped: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in entries.items():
        if key in shaped and isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
            yield key, value


def _unsavable(value: object, path: str) -> tuple[str, str] | None:
    """Path and class of the first value in a state that a checkpoint cannot hold; None where it holds them all."""
    if value is None or isinstance(value, bool | int | float | str | torch.Tensor):
        return None
    if not isinstance(value, Mapping) and type(value) not in (list, tuple):
        return path.rstrip("."), type(value).__name__
    entries: Iterable[tuple[object, object]] = value.items() if isinstance(value, Mapping) else enumerate(cast("Sequence[object]", value))
    return next((found for key, inner in entries if (found := _unsavable(inner, f"{path}{key}.")) is not None), None)


def _no_state(called: str, path: str, kind: str) -> str:
    return (
        f"the optimizer {called} keeps {path}, a {kind}, which no checkpoint can hold: keep tensors, numbers, texts, lists, tuples and "
        "maps of them in its `state` and its groups"
    )


def _common_counts(optimizer: str, names: Sequence[str], counted: Mapping[str, Kept]) -> Mapping[str, Any]:
    """What the torch groups that these parameters come from have counted, which must be the same in all of them."""
    older = [name for name in names if name in counted]
    if not older:
        return {}
    first, *others = older
    own = counted[first].counts
    for other in others:
        theirs = counted[other].counts
        if apart := [key for key in {**own, **theirs} if key not in own or key not in theirs or _differ(own[key], theirs[key])]:
            raise UserError(
                f"{optimizer} counts in its parameter groups ({', '.join(apart)}), and {first} and {other}, which it counted apart, "
                f"cannot have one count: keep them in groups of their own, {_OTHERWISE}"
            )
    counts = [key for key, value in own.items() if isinstance(value, int | float | torch.Tensor) and not isinstance(value, bool)]
    begun = [name for name in names if name not in counted]
    if counts and begun:
        raise UserError(
            f"{optimizer} counts in its parameter groups ({', '.join(counts)}), where {begun[0]}, which begins at this boundary, cannot "
            f"have a count of its own beside {first}: give what begins a group of its own, {_OTHERWISE}"
        )
    return own


_OTHERWISE = "take an optimizer that counts for each parameter, or declare another optimizer in this phase"


def _differ(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return not torch.equal(left, right)
    return isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor) or bool(left != right)


def laid_entries(entries: Entries, parameter: torch.Tensor) -> dict[str, Any]:
    """Saved state of a frozen parameter as it is, or this process's part of it where it holds a part of the parameter."""
    return {key: _beside(value, parameter, on_device=False) for key, value in entries.items()} if is_part(parameter) else dict(entries)


def _beside(value: Any, parameter: torch.Tensor, on_device: bool) -> Any:
    """A copy of a saved entry where the optimizer expects it: at its parameter; a step counter on the CPU unless kernels read it."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.shape == parameter.shape and value.dim():
        return laid_as(value, parameter)
    return value.detach().to(parameter.device if value.dim() or on_device else "cpu", copy=True)
