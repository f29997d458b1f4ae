"""Schedule-free AdamW over named parameter groups: an average of the iterates in place of a decaying learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from stackwise import BuildContext, ParameterGroup
from stackwise_providers_optim.eager import EagerOptimizer
from stackwise_providers_optim.grouping import gradients, torch_groups, with_gradient
from stackwise_providers_optim.options import ScheduleFreeOptions


class _Counters(NamedTuple):
    """Scalar state of a parameter."""

    step: float
    weight_sum: float
    lr_max: float
    beta1: float
    """The β₁ of the parameter's present y."""


MOMENTS: dict[str, int | str] = {"exp_avg_sq": 2, "z": "weight", **dict.fromkeys(_Counters._fields, 0)}


class ScheduleFreeAdamW(EagerOptimizer):
    """Gradients at y = (1−β₁)z + β₁x, Adam steps without a first moment on z, and x the weighted mean of all z.

    In training the parameters hold y and the state holds z. x is not stored: it follows from y and z. `eval()` writes x, the weights
    to evaluate and keep, into the parameters; `train()` puts y back, bit for bit. A change of β₁ moves y, not x or z.

    Args:
        params: torch groups with `lr`, `weight_decay`, `beta1`, `beta2` and `eps`.
        step_power: r, exponent of the step number in a weight of the mean.
        lr_power: exponent of the largest learning rate so far in it.

    Source: arXiv 2405.15682, algorithm 1 and section 4.
    """

    def __init__(self, params: Any, *, step_power: float = 0.0, lr_power: float = 2.0) -> None:
        self._y: dict[torch.Tensor, torch.Tensor] = {}
        super().__init__(params, {"step_power": step_power, "lr_power": lr_power})

    @torch.no_grad()
    def eval(self) -> None:
        """Write x into the parameters; until `train()` a copy of y is kept."""
        if self._y:
            return
        for parameter, state in self.state.items():
            if "z" in state:
                self._y[parameter] = parameter.clone()
                parameter.lerp_(state["z"], 1 - 1 / float(state["beta1"]))

    @torch.no_grad()
    def train(self) -> None:
        """Write y back into the parameters."""
        for parameter, y in self._y.items():
            parameter.copy_(y)
        self._y = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """Move every parameter that has a gradient.

        Raises:
            RuntimeError: the parameters hold x.
        """
        if self._y:
            raise RuntimeError("schedule-free: the parameters hold the average x, gradients belong to y: call train() before step()")
        for group in self.param_groups:
            for counters, parameters in self._alike(group).items():
                self._step(group, parameters, counters)

    def _alike(self, group: dict[str, Any]) -> dict[_Counters, list[torch.Tensor]]:
        """Parameters grouped by equal counters: those added by growth have their own."""
        alike: dict[_Counters, list[torch.Tensor]] = {}
        for parameter in with_gradient(group):
            state = self.state[parameter]
            if "z" not in state:
                state["z"], state["exp_avg_sq"] = parameter.clone(), torch.zeros_like(parameter)
                _remember(state, _Counters(0.0, 0.0, 0.0, group["beta1"]))
            alike.setdefault(_Counters(*(float(state[name]) for name in _Counters._fields)), []).append(parameter)
        return alike

    def _step(self, group: dict[str, Any], y: list[torch.Tensor], before: _Counters) -> None:
        lr, beta1, beta2 = group["lr"], group["beta1"], group["beta2"]
        step, lr_max = before.step + 1, max(lr, before.lr_max)
        weight = step ** group["step_power"] * lr_max ** group["lr_power"]
        weight_sum = before.weight_sum + weight
        share = weight / weight_sum if weight_sum else 0.0
        z = [self.state[p]["z"] for p in y]
        if beta1 != before.beta1:
            torch._foreach_lerp_(y, z, 1 - beta1 / before.beta1)
        update = self._normalised(group, y, 1 - beta2**step)
        torch._foreach_lerp_(y, z, share)
        torch._foreach_add_(y, update, alpha=lr * (beta1 * (1 - share) - 1))
        torch._foreach_sub_(z, update, alpha=lr)
        for parameter in y:
            _remember(self.state[parameter], _Counters(step, weight_sum, lr_max, beta1))

    def _normalised(self, group: dict[str, Any], y: list[torch.Tensor], correction: float) -> list[torch.Tensor]:
        """The gradient divided by the root of its second moment, plus the weight decay at y."""
        grads, squares, beta2 = gradients(y), [self.state[p]["exp_avg_sq"] for p in y], group["beta2"]
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        roots = torch._foreach_div(squares, correction)
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        update = list(torch._foreach_div(grads, roots))
        if group["weight_decay"]:
            torch._foreach_add_(update, y, alpha=group["weight_decay"])
        return update


def _remember(state: dict[str, torch.Tensor], counters: _Counters) -> None:
    for name, value in counters._asdict().items():
        state[name] = torch.tensor(value, dtype=torch.float64)


def build_schedule_free(options: ScheduleFreeOptions, context: BuildContext, groups: Sequence[ParameterGroup]) -> ScheduleFreeAdamW:
    """The factory of `schedule-free`.

    Raises:
        UserError: a group value that it does not have, or no parameter at all.
    """
    entries = torch_groups(options, groups, moments=MOMENTS)
    return ScheduleFreeAdamW(entries, step_power=options.step_power, lr_power=options.lr_power)
