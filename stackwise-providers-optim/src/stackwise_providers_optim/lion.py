"""Lion over named parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stackwise import BuildContext, ParameterGroup
from stackwise_providers_optim.eager import EagerOptimizer
from stackwise_providers_optim.grouping import gradients, state_of, torch_groups, with_gradient
from stackwise_providers_optim.options import LionOptions


class Lion(EagerOptimizer):
    """p ← (1 − lr·λ)p − lr·sign(β₁m + (1−β₁)g); m ← β₂m + (1−β₂)g (arXiv 2302.06675, algorithm 2).

    Args:
        params: torch groups with `lr`, `weight_decay`, `beta1` and `beta2`.
    """

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            if parameters := with_gradient(group):
                self._step(group, parameters)

    def _step(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        grads, lr = gradients(parameters), group["lr"]
        averages = state_of(self, parameters, "exp_avg")
        update = list(torch._foreach_lerp(averages, grads, 1 - group["beta1"]))
        torch._foreach_sign_(update)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, update, alpha=-lr)
        torch._foreach_lerp_(averages, grads, 1 - group["beta2"])


def build_lion(options: LionOptions, context: BuildContext, groups: Sequence[ParameterGroup]) -> Lion:
    """The factory of `lion`.

    Raises:
        UserError: a group value that Lion does not have, or no parameter at all.
    """
    return Lion(torch_groups(options, groups, moments={"exp_avg": 1}))
