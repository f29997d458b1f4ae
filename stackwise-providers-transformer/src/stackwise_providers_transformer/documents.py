"""Documents, prefixes and padding in one row: which entries see which, and the position of every entry in its document.

Shapes: B batch, T time.
"""

from __future__ import annotations

import torch


def attention_mask(
    hidden_BTD: torch.Tensor,
    segments_BT: torch.Tensor | None,
    *,
    causal: bool,
    prefix_B: torch.Tensor | None = None,
    real_BT: torch.Tensor | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """What attention adds to its scores: 0 where an entry sees another, -inf elsewhere; [B, 1, T, T], or one for all rows.

    Made once a forward pass and shared by all blocks. It is already in the precision that attention runs in: a boolean mask would be
    turned into such a tensor by every block, and each would keep its own for the backward pass.

    Args:
        hidden_BTD: says device and precision.
        segments_BT: integer document of every entry; equal numbers in one row are one document, and an entry sees its own.
        causal: whether an entry sees only itself and those before it.
        prefix_B: under causality, how many entries at the begin of a row all entries see (UniLM, arXiv 1905.03197, section 2.2).
        real_BT: whether an entry is real; padding sees only padding, so that no row of scores is empty.
        window: an entry sees those nearer than this, itself at distance 0; all when None (Longformer, arXiv 2004.05150, section 3.1).
    """
    time = hidden_BTD.shape[1]
    seen_B1TT = torch.ones(1, 1, time, time, dtype=torch.bool, device=hidden_BTD.device)
    if causal:
        seen_B1TT = seen_B1TT.tril_()
    if prefix_B is not None:
        in_prefix_BT = torch.arange(time, device=hidden_BTD.device) < prefix_B[:, None]
        seen_B1TT = seen_B1TT | in_prefix_BT[:, None, None, :]
    if window is not None and window < time:
        near_1TT = torch.ones(1, 1, time, time, dtype=torch.bool, device=hidden_BTD.device).triu_(1 - window).tril_(window - 1)
        seen_B1TT = seen_B1TT & near_1TT
    for parts_BT in (segments_BT, real_BT):
        if parts_BT is not None:
            seen_B1TT = seen_B1TT & (parts_BT[:, None, :, None] == parts_BT[:, None, None, :])
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
