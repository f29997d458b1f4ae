"""Low-rank changes of frozen matrices (LoRA, arXiv 2106.09685, section 4.1). Shapes: I in, O out, R rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stackwise import BuildContext
from waves_for_stackwise.options import LowRankOptions


class LowRank(nn.Module):
    """Adds up·down·x to what the matrix gives; `up` is zero at first, so that nothing is added."""

    def __init__(self, options: LowRankOptions, weight: Tensor) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(torch.randn(options.rank, inputs) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, options.rank))

    def forward(self, input: Tensor) -> Tensor:
        """[…, I] → […, O]."""
        return input @ self.down.T @ self.up.T

    def merged(self, weight: Tensor) -> Tensor:
        """The matrix that gives alone what both give together."""
        return weight + self.up @ self.down


def build_low_rank(options: LowRankOptions, context: BuildContext, weight: Tensor) -> LowRank:
    """The factory of weight adapter `waves.low-rank`; `weight` is the matrix [O, I] it stands beside."""
    return LowRank(options, weight)
