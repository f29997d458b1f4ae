"""AdamW over named parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stackwise import BuildContext, ParameterGroup
from stackwise_providers_optim.eager import AdamW
from stackwise_providers_optim.grouping import torch_groups
from stackwise_providers_optim.options import AdamWOptions

MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2, "step": 0}
_FUSED_DEVICES = frozenset({"cpu", "cuda"})


def build_adamw(options: AdamWOptions, context: BuildContext, groups: Sequence[ParameterGroup]) -> torch.optim.AdamW:
    """The factory of `adamw`.

    Each group becomes up to two torch groups that carry its name as `group`: one with weight decay, and one whose
    `weight_decay` stays 0 and is named in `fixed`. Set `beta1` and `beta2` of a torch group: its `betas` are derived from them
    before every step.

    Args:
        options: values for groups without their own.
        context: unused; AdamW draws nothing.
        groups: canonical name → parameter, and the values in force.

    Raises:
        UserError: a group value that AdamW does not have, or no parameter at all.
    """
    entries = torch_groups(options, groups, moments=MOMENTS)
    fused = all(can_fuse(p) for group in groups for p in group.parameters.values())
    optimizer = AdamW(entries, fused=fused or None)
    optimizer.register_step_pre_hook(_set_betas)
    _set_betas(optimizer)
    return optimizer


def can_fuse(parameter: torch.Tensor) -> bool:
    """Whether torch has a fused step for a parameter of this dtype and device."""
    return parameter.is_floating_point() and parameter.device.type in _FUSED_DEVICES


def _set_betas(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Set `betas` in a hook, as overriding `step` would run the user's own hooks twice."""
    for group in optimizer.param_groups:
        group["betas"] = (group["beta1"], group["beta2"])
