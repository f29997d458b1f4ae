"""The precision that attention runs in.

Shapes: B batch, T time, N query heads, K key and value heads, H features a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Mix = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def attend_precisely(mix: Mix, q_BNTH: torch.Tensor, k_BKTH: torch.Tensor, v_BKTH: torch.Tensor) -> torch.Tensor:
    """Attention in the precision of v; on a CPU in float32 or better, because its low-precision kernels are slow.

    Args:
        mix: computes attention from queries, keys and values of one precision.
        q_BNTH: queries, of any floating dtype, as keys are.
        k_BKTH: keys.
        v_BKTH: values, whose dtype the result has.
    """
    dtype, device = v_BKTH.dtype, v_BKTH.device.type
    if device != "cpu":
        return mix(q_BNTH.to(dtype), k_BKTH.to(dtype), v_BKTH)
    precise = torch.promote_types(dtype, torch.float32)
    if dtype == precise and not torch.is_autocast_enabled(device):
        return mix(q_BNTH.to(dtype), k_BKTH.to(dtype), v_BKTH)
    with torch.autocast(device, enabled=False):
        return mix(q_BNTH.to(precise), k_BKTH.to(precise), v_BKTH.to(precise)).to(dtype)
