"""Rotary positions (RoFormer, arXiv 2104.09864, section 3.2.2).

Shapes: B batch, T time, N heads, H features a head, P = H/2 pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Rotation(NamedTuple):
    """Cosine and sine of every angle, [T, P], or [B, 1, T, P] where rows have positions of their own."""

    cosine: torch.Tensor
    sine: torch.Tensor


def rotation(hidden_BTD: torch.Tensor, positions_BT: torch.Tensor | None, *, pairs: int, base: float) -> Rotation:
    """The angles position · base^(-p/P), in float32 or better: a low precision would blur far positions.

    Computed anew at every call (two small tables): a stored one would have to survive meta devices, moves and inference mode.

    Args:
        hidden_BTD: says length, device and precision.
        positions_BT: integer position of every entry; 0..T-1 when None.
        pairs: P, half the features of a head.
        base: base of the wavelengths, in positions.
    """
    dtype = torch.promote_types(hidden_BTD.dtype, torch.float32)
    frequency_P = torch.arange(pairs, device=hidden_BTD.device, dtype=dtype).mul_(-1.0 / pairs)
    frequency_P = torch.pow(base, frequency_P)
    if positions_BT is None:
        angle = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device, dtype=dtype)[:, None] * frequency_P
    else:
        angle = positions_BT.to(dtype)[:, None, :, None] * frequency_P
    return Rotation(angle.cos(), angle.sin())


def rotate(x_BNTH: torch.Tensor, turn: Rotation) -> torch.Tensor:
    """Turn feature p and feature p + P of each head by their angle; the result has the precision of the angles."""
    first, second = x_BNTH.chunk(2, dim=-1)
    return torch.cat((first * turn.cosine - second * turn.sine, second * turn.cosine + first * turn.sine), dim=-1)
