"""The position-wise part of a block.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from stackwise_providers_transformer.projection import Projection


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU by its approximation with tanh (arXiv 1606.08415, section 2)."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
}
"""Name → function of every entry."""

GATED: Mapping[str, str] = {"swiglu": "silu", "geglu": "gelu", "geglu-tanh": "gelu-tanh", "reglu": "relu"}
"""Form of a gated MLP → the activation of its gate (arXiv 2002.05202, section 2)."""


class GatedMLP(nn.Module):
    """down(activation(gate(x)) · up(x)) (arXiv 2002.05202, section 2)."""

    def __init__(self, *, width: int, features: int, bias: bool, std: float, output_std: float, activation: str = "silu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gate = Projection(width, features, std=std, bias=bias)
        self.up = Projection(width, features, std=std, bias=bias)
        self.down = Projection(features, width, std=output_std, bias=bias)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """x [B, T, D] → [B, T, D]."""
        mixed: torch.Tensor = self.down(self.activation(self.gate(x_BTD)) * self.up(x_BTD))
        return mixed


class PlainMLP(nn.Module):
    """down(activation(up(x))) (arXiv 1706.03762, section 3.3; GELU arXiv 1606.08415, section 2)."""

    def __init__(self, *, width: int, features: int, bias: bool, std: float, output_std: float, activation: str = "gelu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.up = Projection(width, features, std=std, bias=bias)
        self.down = Projection(features, width, std=output_std, bias=bias)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """x [B, T, D] → [B, T, D]."""
        mixed: torch.Tensor = self.down(self.activation(self.up(x_BTD)))
        return mixed


def make_mlp(form: str, *, width: int, features: int, bias: bool, std: float, output_std: float) -> GatedMLP | PlainMLP:
    """The MLP of a form: one of `GATED`, or the name of an activation."""
    make, activation = (GatedMLP, GATED[form]) if form in GATED else (PlainMLP, form)
    return make(width=width, features=features, bias=bias, std=std, output_std=output_std, activation=activation)
