"""Several documents in one row: who sees whom, and where in its document every entry stands.

Shapes: B batch, T time.
"""

from __future__ import annotations

import torch


def attention_mask(hidden_BTD: torch.Tensor, segments_BT: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """What attention adds to its scores: 0 where an entry sees another of its own segment, -inf elsewhere; [B, 1, T, T].

    Made once a forward pass and shared by all blocks. It is already in the precision that attention runs in: a boolean mask would be
    turned into such a tensor by every block, and each would keep its own for the backward pass.

    Args:
        hidden_BTD: says device and precision.
        segments_BT: integer document of every entry; equal numbers in one row are one document.
        causal: whether an entry sees only itself and those before it.
    """
    seen_B1TT = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
    if causal:
        seen_B1TT = seen_B1TT.tril_()
    mask_B1TT = torch.zeros(seen_B1TT.shape, dtype=_precision(hidden_BTD), device=hidden_BTD.device)
    return mask_B1TT.masked_fill_(seen_B1TT.logical_not_(), -torch.inf)


def positions_within(segments_BT: torch.Tensor) -> torch.Tensor:
    """0, 1, 2, … from the first entry of every run of equal segments; int64 [B, T]."""
    place_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    begins_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return place_T - (place_T * begins_BT).cummax(dim=1).values


def _precision(hidden_BTD: torch.Tensor) -> torch.dtype:
    """The dtype attention runs in: on a CPU never below float32, elsewhere that of autocast or of the hidden state."""
    device = hidden_BTD.device.type
    if device == "cpu":
        return torch.promote_types(hidden_BTD.dtype, torch.float32)
    lowered = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if lowered else hidden_BTD.dtype
