"""AdamW over named parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stackwise import BuildContext, ParameterGroup, UserError
from stackwise_providers_optim.options import AdamWOptions

_GROUP_VALUES = ("lr", "weight_decay", "eps")
_FUSED_DEVICES = frozenset({"cpu", "cuda"})


def build_adamw(options: AdamWOptions, context: BuildContext, groups: Sequence[ParameterGroup]) -> torch.optim.AdamW:
    """The factory of `adamw`.

    Each group becomes up to two torch groups that carry its name as `group`: what decays, and what does not, whose
    `weight_decay` stays 0 and is named in `fixed`.

    Args:
        options: values for every group that gives none of its own.
        context: unused; AdamW draws nothing.
        groups: canonical name → parameter, and the values in force.

    Raises:
        UserError: a group value that AdamW keeps for all groups together, or no parameter at all.
    """
    torch_groups: list[dict[str, Any]] = []
    for group in groups:
        values = _values(options, group)
        decayed = {name: p for name, p in group.parameters.items() if options.decay == "all" or _is_matrix(name, p)}
        spared = {name: p for name, p in group.parameters.items() if name not in decayed}
        if decayed:
            torch_groups.append({**values, "params": list(decayed.items()), "group": group.name, "fixed": ()})
        if spared:
            torch_groups.append(
                {**values, "weight_decay": 0.0, "params": list(spared.items()), "group": group.name, "fixed": ("weight_decay",)}
            )
    if not torch_groups:
        raise UserError("optimizer: no parameter is left to train: freeze less")
    fused = all(_can_fuse(p) for group in groups for p in group.parameters.values())
    return torch.optim.AdamW(
        torch_groups, lr=options.lr, weight_decay=options.weight_decay, betas=options.betas, eps=options.eps, fused=fused or None
    )


def _values(options: AdamWOptions, group: ParameterGroup) -> dict[str, float]:
    if unknown := sorted(set(group.values) - set(_GROUP_VALUES)):
        raise UserError(
            f"optimizer.groups.{group.name}.{unknown[0]}: AdamW takes it for all groups together; "
            f"a group has its own {', '.join(_GROUP_VALUES)}: move it to the optimizer"
        )
    return {name: group.values.get(name, getattr(options, name)) for name in _GROUP_VALUES}


def _is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim >= 2 and not name.startswith("embedding.")


def _can_fuse(parameter: torch.Tensor) -> bool:
    return parameter.is_floating_point() and parameter.device.type in _FUSED_DEVICES
