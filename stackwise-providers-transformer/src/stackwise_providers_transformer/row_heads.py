"""One vector for a row.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

import torch


def pooled(hidden_BTD: torch.Tensor, mask_BT: torch.Tensor | None, pool: str) -> torch.Tensor:
    """hidden [B, T, D] → [B, D]: the `mean` of the real positions, the `first`, or the `last` real one; all are real without a mask."""
    if pool == "first":
        return hidden_BTD[:, 0]
    if mask_BT is None:
        return hidden_BTD.mean(dim=1) if pool == "mean" else hidden_BTD[:, -1]
    if pool == "mean":
        real_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTD.dtype)
        return (hidden_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1).clamp(min=1)
    place_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = (place_T * mask_BT).argmax(dim=1)
    return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last_B]
