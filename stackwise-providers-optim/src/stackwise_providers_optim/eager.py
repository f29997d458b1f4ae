"""Optimizers of torch without its compiler.

torch marks the methods of an optimizer as not to be compiled, and the mark imports `torch._dynamo` and sympy when one of them is first
called: 1,500 modules, which take as long as torch itself. Nothing here compiles an optimizer, so what stands beneath the mark is used.
"""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import torch


class EagerOptimizer(torch.optim.Optimizer):
    """A base for optimizers; what it has of torch does the same as there."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)


_adamw_step = unwrap(torch.optim.AdamW.step)


class AdamW(EagerOptimizer, torch.optim.AdamW):
    """torch's AdamW, under its name: checkpoints name the class of their optimizer."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient."""
        return _adamw_step(self, closure)
