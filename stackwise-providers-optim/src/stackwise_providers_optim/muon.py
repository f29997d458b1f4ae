"""Muon for hidden matrices and AdamW for everything else, as one optimizer over named parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import attrs
import torch
from torch.optim.adamw import adamw

from stackwise import BuildContext, ParameterGroup, UserError, select
from stackwise_providers_optim.adamw import MOMENTS, can_fuse
from stackwise_providers_optim.eager import EagerOptimizer
from stackwise_providers_optim.grouping import TorchGroup, gradients, state_of, torch_groups, with_gradient
from stackwise_providers_optim.newton_schulz import orthogonalize
from stackwise_providers_optim.options import MuonOptions, is_hidden_matrix

HIDDEN_MOMENTS = {"exp_avg": 1}
"""The momentum is a running mean like Adam's first moment and shares its name, so that either can continue as the other."""


class Muon(EagerOptimizer):
    """m ← μm + (1−μ)g; p ← (1 − lr·λ)p − lr·scale·NS(m), Nesterov: NS of (1−μ)g + μm; every other parameter is AdamW's.

    All matrices of one shape are orthogonalised in one batch, across groups.

    Args:
        params: torch groups whose `rule` is `muon` or `adamw`; the former follow `lr`, `weight_decay` and `momentum`, the latter
            the values that begin with `adamw_`.
        nesterov: whether to look ahead along the momentum.
        scale: factor on the update of an m × n matrix, `original` √max(1, m/n) or `match-rms-adamw` 0.2·√max(m, n).
        ns_steps: Newton–Schulz steps.
        precision: of these steps: `float32`, `bfloat16`, or `auto`, float32 on a CPU and bfloat16 elsewhere; float64 parameters stay so.

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; arXiv 2502.16982, section 2.2.
    """

    def __init__(self, params: Any, *, nesterov: bool = True, scale: str = "original", ns_steps: int = 5, precision: str = "auto") -> None:
        self._ns_steps, self._precision = ns_steps, precision
        super().__init__(params, {"nesterov": nesterov, "scale": scale})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """Move every parameter that has a gradient."""
        moves: list[tuple[torch.Tensor, torch.Tensor, TorchGroup]] = []
        for group in self.param_groups:
            if not (parameters := with_gradient(group)):
                continue
            if group["rule"] == "adamw":
                self._step_adamw(group, parameters)
            else:
                moves += zip(parameters, self._momentum(group, parameters), [group] * len(parameters), strict=True)
        self._step_muon(moves)

    def _momentum(self, group: TorchGroup, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        """Update the momentum; returns the matrices to orthogonalise."""
        buffers, grads, momentum = state_of(self, parameters, "exp_avg"), gradients(parameters), group["momentum"]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        return list(torch._foreach_lerp(grads, buffers, momentum)) if group["nesterov"] else buffers

    def _step_muon(self, moves: list[tuple[torch.Tensor, torch.Tensor, TorchGroup]]) -> None:
        for dtype in {self._dtype(p) for p, _, _ in moves}:
            members = [entry for entry in moves if self._dtype(entry[0]) is dtype]
            updates = orthogonalize([update.flatten(1) for _, update, _ in members], self._ns_steps, dtype)
            for (parameter, _, group), update in zip(members, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                factor = _SCALES[group["scale"]](*update.shape)
                parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * factor)

    def _dtype(self, parameter: torch.Tensor) -> torch.dtype:
        if self._precision == "auto" and (parameter.device.type == "cpu" or parameter.dtype is torch.float64):
            return torch.promote_types(parameter.dtype, torch.float32)
        return torch.float32 if self._precision == "float32" else torch.bfloat16

    def _step_adamw(self, group: TorchGroup, parameters: list[torch.Tensor]) -> None:
        state = [self._moments(p) for p in parameters]
        adamw(
            parameters,
            gradients(parameters),
            [entry["exp_avg"] for entry in state],
            [entry["exp_avg_sq"] for entry in state],
            [],
            [entry["step"] for entry in state],
            fused=group["fused"] or None,
            amsgrad=False,
            beta1=group["adamw_beta1"],
            beta2=group["adamw_beta2"],
            lr=group["adamw_lr"],
            weight_decay=group["adamw_weight_decay"],
            eps=group["adamw_eps"],
            maximize=False,
        )

    def _moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.state[parameter]
        if "exp_avg_sq" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if can_fuse(parameter) else "cpu")
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _original(rows: int, columns: int) -> float:
    return sqrt(max(1.0, rows / columns))


def _match_rms_adamw(rows: int, columns: int) -> float:
    return 0.2 * sqrt(max(rows, columns))


_SCALES = {"original": _original, "match-rms-adamw": _match_rms_adamw}


def build_muon(options: MuonOptions, context: BuildContext, groups: Sequence[ParameterGroup]) -> Muon:
    """The factory of `muon`.

    Raises:
        UserError: a selector of `matrices` that matches nothing trainable, or a vector; a group value that Muon does not have; no
            parameter at all.
    """
    _check_matrices(options, groups)
    hidden, rest = [], []
    for group in groups:
        matrices = {name: p for name, p in group.parameters.items() if is_hidden_matrix(options.matrices, name, tuple(p.shape))}
        others = {name: p for name, p in group.parameters.items() if name not in matrices}
        hidden += [attrs.evolve(group, parameters=matrices)] if matrices else []
        rest += [attrs.evolve(group, parameters=others)] if others else []
    every = attrs.evolve(options, decay="all")
    entries = [{**group, "rule": "muon"} for group in (torch_groups(every, hidden, moments=HIDDEN_MOMENTS) if hidden else [])]
    if rest or not hidden:
        entries += [
            {**group, "rule": "adamw", "fused": all(can_fuse(p) for _, p in group["params"])}
            for group in torch_groups(options, rest, moments=MOMENTS, decay_key="adamw_weight_decay")
        ]
    return Muon(entries, nesterov=options.nesterov, scale=options.scale, ns_steps=options.ns_steps, precision=options.precision)


def _check_matrices(options: MuonOptions, groups: Sequence[ParameterGroup]) -> None:
    shapes = {name: tuple(p.shape) for group in groups for name, p in group.parameters.items()}
    for name in select(options.matrices, shapes) if options.matrices is not None else ():
        if len(shapes[name]) < 2:
            raise UserError(
                f"optimizer.matrices: {name} has the shape {list(shapes[name])}, and Muon steps matrices: "
                "write selectors that name parameters of two axes or more"
            )
