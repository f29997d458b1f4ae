"""Dropout whose share may follow time, inside compiled code too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn


class Dropout(nn.Module):
    """Zero each entry with probability `share` and scale the others by 1 / (1 - share), in training only (arXiv 1207.0580, section 1).

    The share lies in tensors: compiled code reads them at every call, where a number would be a constant that each change compiles
    anew. Only between none and some does the code differ.

    Args:
        share: probability of zero, 0 to 1.
    """

    keep: torch.Tensor
    scale: torch.Tensor

    def __init__(self, share: float) -> None:
        super().__init__()
        self.register_buffer("keep", torch.tensor(1.0), persistent=False)
        self.register_buffer("scale", torch.tensor(1.0), persistent=False)
        self.set_share(share)

    def set_share(self, share: float) -> None:
        """Put another share in force."""
        self._drops = share > 0
        self.keep.fill_(1 - share)
        self.scale.fill_(1 / (1 - share) if share < 1 else 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x of any shape → the same shape and dtype."""
        if not (self.training and self._drops):
            return x
        return x * torch.empty_like(x).bernoulli_(self.keep).mul_(self.scale)


def apply_dropout(modules: Iterable[nn.Module], values: Mapping[str, float]) -> None:
    """Put the share that the option `dropout` has now in force in each of the modules that is a Dropout."""
    if "dropout" in values:
        for module in modules:
            if isinstance(module, Dropout):
                module.set_share(values["dropout"])
