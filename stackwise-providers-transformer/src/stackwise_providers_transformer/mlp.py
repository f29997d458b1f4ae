"""The position-wise part of a block.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from stackwise_providers_transformer.projection import Projection


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (arXiv 2002.05202, section 2)."""

    def __init__(self, *, width: int, features: int, bias: bool, std: float, output_std: float) -> None:
        super().__init__()
        self.gate = Projection(width, features, std=std, bias=bias)
        self.up = Projection(width, features, std=std, bias=bias)
        self.down = Projection(features, width, std=output_std, bias=bias)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """x [B, T, D] → [B, T, D]."""
        mixed: torch.Tensor = self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return mixed


class GELU(nn.Module):
    """down(gelu(up(x))) (arXiv 1606.08415, section 2)."""

    def __init__(self, *, width: int, features: int, bias: bool, std: float, output_std: float) -> None:
        super().__init__()
        self.up = Projection(width, features, std=std, bias=bias)
        self.down = Projection(features, width, std=output_std, bias=bias)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """x [B, T, D] → [B, T, D]."""
        mixed: torch.Tensor = self.down(F.gelu(self.up(x_BTD)))
        return mixed
