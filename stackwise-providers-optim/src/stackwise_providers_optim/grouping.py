"""Parameter groups of the core → torch groups, split by weight decay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch

from stackwise import ParameterGroup, UserError
from stackwise_providers_optim.options import DecayOptions

EMBEDDING_SIDE = "embedding."

TorchGroup = dict[str, Any]
"""What `torch.optim.Optimizer` takes as a parameter group; its `params` are pairs of a name and a parameter."""


def torch_groups(
    options: DecayOptions,
    groups: Sequence[ParameterGroup],
    *,
    moments: Mapping[str, int | str],
    decay_key: str = "weight_decay",
) -> list[TorchGroup]:
    """Make up to two torch groups of each group: one with weight decay, and one whose decay stays 0 and is named in `fixed`.

    Args:
        options: values for groups without their own.
        groups: canonical name → parameter, and the values in force.
        moments: what the optimizer keeps, as the contract of `ParameterGroup` has it; empty: it does not say.
        decay_key: the entry of a torch group that holds its weight decay.

    Raises:
        UserError: a group value that the optimizer does not have, or no parameter at all.
    """
    result = []
    for group in groups:
        values = values_of(options, group)
        for parameters, decays in _split(options, group):
            entries = {**values, "group": group.name, "moments": dict(moments), "fixed": () if decays else (decay_key,)}
            if not decays and decay_key in entries:
                entries[decay_key] = 0.0
            result.append({**entries, "params": list(parameters.items())})
    if not result:
        raise UserError("optimizer: no parameter is left to train: freeze less")
    return result


def values_of(options: DecayOptions, group: ParameterGroup) -> dict[str, float]:
    """Values of the options that may follow time: the group's, else the optimizer's.

    Raises:
        UserError: the group has a value that is no such option.
    """
    names = [a.name for a in attrs.fields(type(options)) if a.metadata.get("scheduled")]
    if unknown := sorted(set(group.values) - set(names)):
        raise UserError(f"optimizer.groups.{group.name}.{unknown[0]}: not a value of a group; a group may have its own {', '.join(names)}")
    return {name: group.values.get(name, getattr(options, name)) for name in names}


def _split(options: DecayOptions, group: ParameterGroup) -> Iterator[tuple[dict[str, torch.nn.Parameter], bool]]:
    """The parameters with weight decay and those without; empty sets are left out."""
    decayed = {name: p for name, p in group.parameters.items() if options.decay == "all" or _is_matrix(name, p)}
    spared = {name: p for name, p in group.parameters.items() if name not in decayed}
    if decayed:
        yield decayed, True
    if spared:
        yield spared, False


def _is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim >= 2 and not name.startswith(EMBEDDING_SIDE)


def with_gradient(group: TorchGroup) -> list[torch.Tensor]:
    """The parameters of a torch group that have a gradient."""
    return [p for p in group["params"] if p.grad is not None]


def gradients(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Their gradients, in order."""
    return [p.grad for p in parameters if p.grad is not None]


def state_of(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor], name: str) -> list[torch.Tensor]:
    """The entry of that name in the state of each parameter, in order; where there is none yet it begins at zero."""
    states = [optimizer.state[parameter] for parameter in parameters]
    for parameter, state in zip(parameters, states, strict=True):
        if name not in state:
            state[name] = torch.zeros_like(parameter)
    return [state[name] for state in states]
