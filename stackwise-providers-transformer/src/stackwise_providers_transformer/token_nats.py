"""Cross-entropy over token ids, summed over the targets that count.

Shapes: B batch, T time, V vocab.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_IGNORED = -100


def summed_nats(
    logits_BTV: torch.Tensor, targets_BT: torch.Tensor, counted_BT: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """The sum in nats, in float32 whatever the precision of the logits, and the number of targets.

    Args:
        logits_BTV: any floating dtype.
        targets_BT: int64 below V.
        counted_BT: which targets count; all when None.
    """
    count = float(targets_BT.numel()) if counted_BT is None else counted_BT.sum()
    if counted_BT is not None:
        targets_BT = targets_BT.masked_fill(~counted_BT, _IGNORED)
    logits = logits_BTV.reshape(-1, logits_BTV.shape[-1]).float()
    return F.cross_entropy(logits, targets_BT.reshape(-1), reduction="sum", ignore_index=_IGNORED), count


def summed_by_row(logits_BTV: torch.Tensor, targets_BT: torch.Tensor, counted_BT: torch.Tensor) -> torch.Tensor:
    """log p of the targets that count, summed within each row, in float32; [B]."""
    nats_BT = F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="none").view_as(targets_BT)
    return -(nats_BT * counted_BT).sum(dim=1)
