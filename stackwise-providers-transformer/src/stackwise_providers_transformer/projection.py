"""A linear map that knows how it starts."""

from __future__ import annotations

from torch import nn


class Projection(nn.Linear):
    """`in_features` → `out_features`, drawn from a normal distribution of deviation `std`, all zero where that is 0; biases start at 0."""

    std = 0.0

    def __init__(self, in_features: int, out_features: int, *, std: float, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.std = std
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the matrix anew, and begin again with no bias."""
        if self.std:
            nn.init.normal_(self.weight, std=self.std)
        else:
            nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
