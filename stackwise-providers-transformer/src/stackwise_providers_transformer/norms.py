"""The two norms a rack can be made of.

Shapes: D features.
"""

from __future__ import annotations

from torch import nn

_EPS = 1e-6


def make_norm(kind: str, features: int, *, bias: bool) -> nn.RMSNorm | nn.LayerNorm:
    """x / rms(x) · weight (`rmsnorm`, arXiv 1910.07467, section 3), or (x - mean) / deviation · weight + bias (`layernorm`, arXiv
    1607.06450, section 3), over D features.

    Args:
        kind: `rmsnorm`, which has no bias, or `layernorm`.
        features: D.
        bias: whether a layer norm adds one.
    """
    return nn.LayerNorm(features, eps=_EPS, bias=bias) if kind == "layernorm" else nn.RMSNorm(features, eps=_EPS)
