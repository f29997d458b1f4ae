"""SGD with momentum over named parameter groups; weight decay coupled or decoupled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stackwise import BuildContext, ParameterGroup
from stackwise_providers_optim.eager import EagerOptimizer
from stackwise_providers_optim.grouping import gradients, state_of, torch_groups, with_gradient
from stackwise_providers_optim.options import SGDOptions


class SGD(EagerOptimizer):
    """b ← μb + g; p ← p − lr·b, or p ← p − lr·(g + μb) with Nesterov's momentum (Sutskever et al. 2013, section 2).

    Weight decay is coupled, g ← g + λp, or decoupled, p ← (1 − lr·λ)p (arXiv 1711.05101, algorithm 1). The buffer b is kept
    even while μ is 0, so that a schedule may raise μ later.

    Args:
        params: torch groups with `lr`, `momentum` and `weight_decay`.
        nesterov: whether to look ahead along the momentum.
        coupled: whether weight decay is coupled.
    """

    def __init__(self, params: Any, *, nesterov: bool = False, coupled: bool = False) -> None:
        super().__init__(params, {"nesterov": nesterov, "coupled": coupled})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            if parameters := with_gradient(group):
                self._step(group, parameters)

    def _step(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        update, lr, decay = gradients(parameters), group["lr"], group["weight_decay"]
        if decay and group["coupled"]:
            update = list(torch._foreach_add(update, parameters, alpha=decay))
        elif decay:
            torch._foreach_mul_(parameters, 1 - lr * decay)
        buffers = state_of(self, parameters, "momentum_buffer")
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, update)
        direction = list(torch._foreach_add(update, buffers, alpha=group["momentum"])) if group["nesterov"] else buffers
        torch._foreach_add_(parameters, direction, alpha=-lr)


def build_sgd(options: SGDOptions, context: BuildContext, groups: Sequence[ParameterGroup]) -> SGD:
    """The factory of `sgd`.

    Raises:
        UserError: a group value that SGD does not have, or no parameter at all.
    """
    return SGD(torch_groups(options, groups, moments={"momentum_buffer": 1}), nesterov=options.nesterov, coupled=options.coupled)
