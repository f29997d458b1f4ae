"""The norms a rack can be made of.

Shapes: D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from stackwise_providers_transformer.block_options import NormOptions

Norm = nn.RMSNorm | nn.LayerNorm


class OffsetRMSNorm(nn.RMSNorm):
    """x / rms(x) · (1 + weight): weight decay then pulls the factor to 1 (arXiv 2403.08295, section 2)."""

    def reset_parameters(self) -> None:
        """Begin with a factor of 1."""
        nn.init.zeros_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., D] → [..., D]."""
        return F.rms_norm(x, list(self.normalized_shape), 1.0 + self.weight, self.eps)


def make_norm(options: NormOptions, features: int, *, bias: bool) -> Norm:
    """x / rms(x) · weight (`rmsnorm`, arXiv 1910.07467, section 3), or (x - mean) / deviation · weight + bias (`layernorm`, arXiv
    1607.06450, section 3), over D features.

    Args:
        options: its kind, and what is added before the root.
        features: D.
        bias: whether a layer norm adds one.
    """
    if options.kind == "layernorm":
        return nn.LayerNorm(features, eps=options.eps, bias=bias)
    return (OffsetRMSNorm if options.gain == "offset" else nn.RMSNorm)(features, eps=options.eps)
