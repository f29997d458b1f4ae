"""The sign of the momentum as the step (signum, arXiv 1802.04434, algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stackwise import BuildContext, ParameterGroup
from waves_for_stackwise.options import SignumOptions


class Signum(torch.optim.Optimizer):
    """m ← βm + (1−β)g; p ← p − lr·sign(m)."""

    def __init__(self, params: Any, lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                parameter.sub_(state["momentum"].sign(), alpha=group["lr"])


def build_signum(options: SignumOptions, context: BuildContext, groups: Sequence[ParameterGroup]) -> Signum:
    """The factory of `waves.signum`: one torch group a group, with its name and its values."""
    params = [{"params": list(group.parameters.items()), "group": group.name, **group.values} for group in groups]
    return Signum(params, lr=options.lr, momentum=options.momentum)
