"""Rotary positions (RoFormer, arXiv 2104.09864, section 3.2.2), and their wavelengths for longer rows.

Shapes: B batch, T time, N heads, H features a head, P pairs of features that turn together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from stackwise_providers_transformer.block_options import RotaryScaling


class Rotation(NamedTuple):
    """Cosine and sine of every angle, [T, P], or [B, 1, T, P] where rows have positions of their own."""

    cosine: torch.Tensor
    sine: torch.Tensor


def rotation(
    hidden_BTD: torch.Tensor, positions_BT: torch.Tensor | None, *, pairs: int, base: float, scaling: RotaryScaling | None = None
) -> Rotation:
    """The angles position · base^(-p/P), in float32 or better: a low precision would blur far positions.

    Computed anew at every call (two small tables): a stored one would have to survive meta devices, moves and inference mode.

    Args:
        hidden_BTD: says length, device and precision.
        positions_BT: integer position of every entry; 0..T-1 when None.
        pairs: P, half the features that turn.
        base: base of the wavelengths, in positions.
        scaling: other wavelengths.
    """
    grown: float | torch.Tensor = base
    dtype = torch.promote_types(hidden_BTD.dtype, torch.float32)
    if scaling is not None and scaling.kind in ("ntk", "dynamic"):
        grown = _larger_base(base, scaling, pairs, hidden_BTD.shape[1], positions_BT)
    frequency_P = torch.arange(pairs, device=hidden_BTD.device, dtype=dtype).mul_(-1.0 / pairs)
    frequency_P = torch.pow(grown, frequency_P)
    if scaling is not None:
        frequency_P = _scaled(frequency_P, grown, scaling)
    if positions_BT is None:
        angle = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device, dtype=dtype)[:, None] * frequency_P
    else:
        angle = positions_BT.to(dtype)[:, None, :, None] * frequency_P
    if (temperature := _temperature(scaling)) != 1:
        return Rotation(angle.cos() * temperature, angle.sin() * temperature)
    return Rotation(angle.cos(), angle.sin())


def rotate(x_BNTH: torch.Tensor, turn: Rotation, *, neighbours: bool = False) -> torch.Tensor:
    """Turn pairs of features of each head by their angle: p and p + P, or 2p and 2p + 1 where `neighbours` pair up.

    Features after the first 2P stay. The result has the precision of the angles.
    """
    turned = 2 * turn.cosine.shape[-1]
    rest = None
    if turned < x_BNTH.shape[-1]:
        x_BNTH, rest = x_BNTH[..., :turned], x_BNTH[..., turned:]
    if neighbours:
        first, second = x_BNTH.view(*x_BNTH.shape[:-1], turned // 2, 2).unbind(-1)
        pair = (first * turn.cosine - second * turn.sine, second * turn.cosine + first * turn.sine)
        out = torch.stack(pair, dim=-1).flatten(-2)
    else:
        first, second = x_BNTH.chunk(2, dim=-1)
        out = torch.cat((first * turn.cosine - second * turn.sine, second * turn.cosine + first * turn.sine), dim=-1)
    return out if rest is None else torch.cat((out, rest.to(out.dtype)), dim=-1)


def _larger_base(base: float, scaling: RotaryScaling, pairs: int, time: int, positions_BT: torch.Tensor | None) -> float | torch.Tensor:
    """`ntk`: base · s^(d/(d-2)) over d turning features, so that the longest wavelength becomes s times as long. `dynamic`: the same
    with s·L/L0 - (s - 1) for rows of length L beyond the original L0, and unchanged up to it."""
    exponent = 2 * pairs / (2 * pairs - 2)
    if scaling.kind == "ntk":
        return float(base * scaling.factor**exponent)
    original = int(scaling.original or 1)
    if positions_BT is None:
        return float(base * (scaling.factor * max(time, original) / original - (scaling.factor - 1)) ** exponent)
    longest = (positions_BT.max() + 1).clamp(min=original).to(torch.float32)
    return base * (scaling.factor * longest / original - (scaling.factor - 1)) ** exponent


def _scaled(frequency_P: torch.Tensor, base: float | torch.Tensor, scaling: RotaryScaling) -> torch.Tensor:
    """Frequencies in the new wavelengths; where a ramp runs from 0 to 1, they go from unchanged to divided by the factor."""
    if scaling.kind == "linear":
        return frequency_P / scaling.factor
    if scaling.kind == "llama3":
        turns_P = int(scaling.original or 1) * frequency_P / (2 * math.pi)
        low, high = float(scaling.low or 0), float(scaling.high or 0)
        ramp_P = 1 - ((turns_P - low) / (high - low)).clamp(0, 1)
    elif scaling.kind == "yarn":
        ramp_P = _yarn_ramp(frequency_P, float(base), scaling)
    else:
        return frequency_P
    return frequency_P * (1 - ramp_P) + frequency_P / scaling.factor * ramp_P


def _yarn_ramp(frequency_P: torch.Tensor, base: float, scaling: RotaryScaling) -> torch.Tensor:
    """0 for pairs that turn more than `fast` times over the original length, 1 for those below `slow` (arXiv 2309.00071, section 3.2),
    linear in the pair between."""
    pairs = frequency_P.shape[0]

    def pair_of(turns: float) -> float:
        return pairs * math.log(int(scaling.original or 1) / (turns * 2 * math.pi)) / math.log(base)

    first, last = pair_of(32.0 if scaling.fast is None else scaling.fast), pair_of(1.0 if scaling.slow is None else scaling.slow)
    if scaling.truncate is None or scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    place_P = torch.arange(pairs, device=frequency_P.device, dtype=frequency_P.dtype)
    return ((place_P - first) / (last - first if last != first else 0.001)).clamp(0, 1)


def _temperature(scaling: RotaryScaling | None) -> float:
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    return 0.1 * math.log(scaling.factor) + 1 if scaling.temperature is None else scaling.temperature
